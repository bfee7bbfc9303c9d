"""JSON and paths written by other people's scripts: questions in three shapes, paths of somebody's own machine.

The data sets of this family (UnifyBench, Yo'LLaVA, MC-LLaVA, Yo'Chameleon) hold the same content under different
keys. This file knows the shapes; what a record is used for is its caller's business.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omnifarm.errors import ConceptError

QUESTION_KEYS = ("query", "question", "Human", "human")
"""Names of a question."""
ANSWER_KEYS = ("answer", "AI", "gpt", "bot", "correct_answer")
"""Names of an answer."""

_MAX_DEPTH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One question as found."""

    image: str
    """Path as written, empty when there is none."""
    question: str
    """May hold `<image>` markers."""
    answer: str
    """As written; of a multiple choice the words, not the letter."""
    options: tuple[tuple[str, str], ...] = ()
    """(letter, words) of a multiple choice."""
    kind: str = ""
    """The record's own `type`, where it has one."""


class ForeignPaths:
    """Finds the files of a source that foreign paths mean.

    Args:
        paths: Every file of the source.
        folder: The concept's folder, against which short paths are read.
        roots: Folders of the source below which the rest of a foreign path may lie, beside the source itself.
    """

    def __init__(self, paths: Iterable[str], *, folder: str, roots: Iterable[str] = ()) -> None:
        self._paths = frozenset(paths)
        self._folder = folder
        self._prefixes = ("", *(f"{root}/" for root in roots))

    def resolve(self, path: str) -> str | None:
        """Return the file a path means, or None.

        Tried in this order: as written; inside the concept's folder; after `unictokens_data/`; the longest existing
        suffix of at least two parts, three for a path that begins with `..` (`../data/train/bo/3.png`). A bare file
        name never reaches outside the concept's folder, because every concept has a `0.png`.
        """
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        min_parts = 2
        while parts[:1] == [".."]:
            parts, min_parts = parts[1:], 3
        if not parts or ".." in parts:
            return None
        if min_parts == 3:
            return self._longest_suffix(parts, min_parts=min_parts)
        whole = "/".join(parts)
        is_absolute = path.startswith(("/", "\\")) or ":" in parts[0]
        if whole in self._paths:
            return whole
        if not is_absolute and f"{self._folder}/{whole}" in self._paths:
            return f"{self._folder}/{whole}"
        if "unictokens_data" in parts:
            rest = "/".join(parts[parts.index("unictokens_data") + 1 :])
            if rest in self._paths:
                return rest
        return self._longest_suffix(parts, min_parts=min_parts)

    def _longest_suffix(self, parts: list[str], *, min_parts: int) -> str | None:
        for start in range(len(parts) - min_parts + 1):
            suffix = "/".join(parts[start:])
            for prefix in self._prefixes:
                if prefix + suffix in self._paths:
                    return prefix + suffix
        return None


def records(value: Any, *, concept: str, concepts: Iterable[str] = ()) -> list[Record]:
    """Return the questions of a parsed file.

    Accepts {image: [pair, ...]}, {image: pair}, [pair with image, ...], any of them below a level of concept names,
    and LLaVA's {"image", "conversations": [{"from", "value"}, ...]}.

    Args:
        value: The parsed file.
        concept: Where the file has a level of concept names, only what stands under this one is returned.
        concepts: Names by which such a level is known.

    Raises:
        ConceptError: The file holds something else.
    """
    if isinstance(value, Mapping) and any(name in value for name in (concept, *concepts)):
        value = value.get(concept, [])
    found = list(_walk(value, image="", depth=0))
    if not found and value:
        what = "holds no question and answer in a known shape"
        raise ConceptError(
            f"{what}; write {{picture: [{{'query': ..., 'answer': ...}}]}}",
            what=what,
            fix='write {"0.png": [{"query": "...", "answer": "..."}]}',
        )
    return found


def _walk(value: Any, *, image: str, depth: int) -> Iterator[Record]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for one in value:
            yield from _walk(one, image=image, depth=depth + 1)
    elif isinstance(value, Mapping):
        picture = value.get("image", value.get("image_path", image))
        picture = next(iter(picture), "") if isinstance(picture, list) else picture
        picture = picture if isinstance(picture, str) else image
        kind = value["type"] if isinstance(value.get("type"), str) else ""
        if isinstance(value.get("conversations"), list):
            yield from _turns(value["conversations"], image=picture, kind=kind)
        elif (question := _first(value, QUESTION_KEYS)) is not None:
            options = _options(value)
            answer = _first(value, ANSWER_KEYS) or ""
            # Multiple choice files answer with a letter; the words behind it are what is to be said.
            answer = dict(options).get(answer, answer)
            yield Record(image=picture, question=question, answer=answer, options=options, kind=kind)
        else:
            for key, one in value.items():
                # A key that holds no dot is a counter or a heading, not a picture.
                yield from _walk(one, image=str(key) if "." in str(key) else image, depth=depth + 1)


def _turns(turns: list[Any], *, image: str, kind: str) -> Iterator[Record]:
    texts = [str(turn.get("value", "")) for turn in turns if isinstance(turn, Mapping)]
    for question, answer in zip(texts[::2], texts[1::2], strict=False):
        yield Record(image=image, question=question, answer=answer, kind=kind)


def _options(value: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    options = value.get("options", value.get("option"))
    if not isinstance(options, Mapping):
        return ()
    return tuple((str(letter), str(words)) for letter, words in options.items())


def _first(value: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((value[key] for key in keys if isinstance(value.get(key), str)), None)
