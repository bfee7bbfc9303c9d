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
    """As written."""


class ForeignPaths:
    """Finds the files of a source that foreign paths mean.

    Args:
        paths: Every file of the source.
        folder: The concept's folder, against which short paths are read.
    """

    def __init__(self, paths: Iterable[str], *, folder: str) -> None:
        self._paths = frozenset(paths)
        self._folder = folder

    def resolve(self, path: str) -> str | None:
        """Return the file a path means, or None.

        Tried in this order: as written; inside the concept's folder; after `unictokens_data/`; the longest existing
        suffix of at least two parts. A bare file name never reaches outside the concept's folder, because every
        concept has a `0.png`.
        """
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            return None
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
        for start in range(len(parts) - 1):
            suffix = "/".join(parts[start:])
            for candidate in (suffix, f"concept/{suffix}", f"concept/train/{suffix}"):
                if candidate in self._paths:
                    return candidate
        return None


def records(value: Any, *, concept: str) -> list[Record]:
    """Return the questions of a parsed file.

    Accepts {image: [pair, ...]}, {image: pair}, [pair with image, ...], any of them below a level of concept names,
    and LLaVA's {"image", "conversations": [{"from", "value"}, ...]}.

    Raises:
        ConceptError: The file holds something else.
    """
    found = list(_walk(value, image="", concept=concept, depth=0))
    if not found and value:
        what = "holds no question and answer in a known shape"
        raise ConceptError(
            f"{what}; write {{picture: [{{'query': ..., 'answer': ...}}]}}",
            what=what,
            fix='write {"0.png": [{"query": "...", "answer": "..."}]}',
        )
    return found


def _walk(value: Any, *, image: str, concept: str, depth: int) -> Iterator[Record]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, list):
        for one in value:
            yield from _walk(one, image=image, concept=concept, depth=depth + 1)
    elif isinstance(value, Mapping):
        picture = value.get("image", value.get("image_path", image))
        picture = next(iter(picture), "") if isinstance(picture, list) else picture
        picture = picture if isinstance(picture, str) else image
        if isinstance(value.get("conversations"), list):
            yield from _turns(value["conversations"], image=picture)
        elif (question := _first(value, QUESTION_KEYS)) is not None:
            yield Record(image=picture, question=question, answer=_answer(value))
        else:
            for key, one in value.items():
                # A level of concept names comes above the pictures; a key that is a counter is neither.
                is_picture = "." in str(key)
                inner = str(key) if is_picture else image
                if (
                    str(key) != concept
                    and not is_picture
                    and not str(key).isdecimal()
                    and depth == 0
                    and _has(value, concept)
                ):
                    continue
                yield from _walk(one, image=inner, concept=concept, depth=depth + 1)


def _has(value: Mapping[Any, Any], concept: str) -> bool:
    return concept in value


def _turns(turns: list[Any], *, image: str) -> Iterator[Record]:
    texts = [str(turn.get("value", "")) for turn in turns if isinstance(turn, Mapping)]
    for question, answer in zip(texts[::2], texts[1::2], strict=False):
        yield Record(image=image, question=question, answer=answer)


def _answer(value: Mapping[str, Any]) -> str:
    answer = _first(value, ANSWER_KEYS) or ""
    options = value.get("options", value.get("option"))
    # Multiple choice files answer with a letter; the words behind it are what is to be said.
    return str(options.get(answer, answer)) if isinstance(options, Mapping) else answer


def _first(value: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    return next((value[key] for key in keys if isinstance(value.get(key), str)), None)
