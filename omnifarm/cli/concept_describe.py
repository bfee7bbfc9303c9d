"""What `omnifarm concept describe` does: the backbone itself writes first questions and captions for bare photographs.

Every photograph of a concept without questions is shown to the untrained backbone, which knows the class but not the
concept; where it says "the dog", the concept's name is put. What the concept looks like is asked of every photograph,
too, and what most of them say becomes a question without a picture: so what was only seen can be told in words. What it
says is a draft: it is appended to concept.yaml under a comment, for its owner to read.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import Image

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.datasets import plain
from omnifarm.concept.datasets.load import open_place
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.sources import LocalSource
from omnifarm.concept.spec import ConceptSpec, normalise_text
from omnifarm.errors import ConfigError
from omnifarm.miniature.identity import ALL_NOUNS, group_of
from omnifarm.miniature.text import LOOKS_QUESTIONS
from omnifarm.serving.engine import Engine
from omnifarm.store.memory import MemoryStore

_MAX_ANSWER_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Interview:
    """What a backbone is asked about every photograph."""

    questions: tuple[str, ...]
    """`{c}` is what the concept is called."""
    looks: Callable[[str], Sequence[str]]
    """Of a class noun: what is the same in every photograph, asked in the same form."""
    caption: str = ""
    """Asks for a sentence to draw from; empty for backbones that cannot."""


def _drawn_looks(noun: str) -> list[str]:
    if noun not in ALL_NOUNS:
        return []
    return [text.format(name="{c}") for topic, text in LOOKS_QUESTIONS[group_of(noun)].items() if topic != "class"]


INTERVIEWS = {
    "general": Interview(
        questions=("Where is {c}?", "What is {c} doing?", "What is in the background of the photo?"),
        looks=lambda noun: ["What does {c} look like?"],
        caption="Describe this photo of {c} in one sentence.",
    ),
    # What the miniature was pre-trained to answer.
    "plain": Interview(
        questions=("Where is {c}?", "What time is it in the photo?", "What kind of picture is this?"),
        looks=_drawn_looks,
    ),
}
"""By the style a backbone's `defaults["templates"]` names."""


def describe(concepts: str, *, backbone: LoadedBackbone) -> dict[str, int]:
    """Append drafts to every plain concept that has no questions; return how many entries each got.

    Raises:
        ConfigError: The place is no local folder of plain concepts.
        ConceptError: It cannot be read.
    """
    layout, source = open_place(concepts)
    if layout.name != plain.LAYOUT.name or not isinstance(source, LocalSource):
        raise ConfigError(
            f"expected plain folders on this machine, found {layout.name} at {concepts}; "
            "copy them with `omnifarm concept import` first"
        )
    interview = interview_of(backbone)
    engine = Engine(backbone, ConceptRepository(MemoryStore()))
    reader = Reader(source)
    written = {}
    for folder in plain.folders(source):
        spec = plain.read(reader, folder, Problems())
        if spec is None or spec.qa:
            continue
        draft = _draft(engine, spec, interview, folder=folder)
        file = next(path for name in plain.FILE_NAMES if (path := source.root / folder / name).exists())
        _append(file, draft, author=backbone.fingerprint[:12])
        written[spec.name] = sum(map(len, draft.values()))
    return written


def interview_of(backbone: LoadedBackbone) -> Interview:
    """Return what a backbone is asked."""
    return INTERVIEWS[str(backbone.config.defaults.get("templates", "general"))]


def seen_looks(engine: Engine, spec: ConceptSpec, interview: Interview) -> dict[str, str]:
    """Return what a concept looks like, as the untrained backbone sees it: questions without a picture, and answers.

    Asked of every photograph; the most frequent answer counts, the first of equals.
    """
    answers: dict[str, str] = {}
    for question in interview.looks(spec.class_noun):
        said = [text for image in spec.images if (text := _said(engine, spec, question, spec.open_image(image)))]
        if said:
            answers[question.format(c=spec.identifier)] = Counter(said).most_common(1)[0][0]
    return answers


def _draft(engine: Engine, spec: ConceptSpec, interview: Interview, *, folder: str) -> dict[str, Any]:
    """Return the `qa` and `captions` of concept.yaml that the backbone suggests."""
    qa, captions = [], {}
    for image in spec.images:
        picture = spec.open_image(image)
        file = image.path.removeprefix(f"{folder}/")
        for question in interview.questions:
            if answer := _said(engine, spec, question, picture):
                qa.append({"question": question.format(c=spec.identifier), "answer": answer, "image": file})
        if interview.caption and not image.caption:
            text = _said(engine, spec, interview.caption, picture)
            captions[file] = text if spec.identifier in text else f"A photo of {spec.identifier}. {text}".strip()
    qa += [{"question": question, "answer": answer} for question, answer in seen_looks(engine, spec, interview).items()]
    has_captions = any(image.caption for image in spec.images)
    return {"qa": qa} if not captions or has_captions else {"qa": qa, "captions": captions}


def _said(engine: Engine, spec: ConceptSpec, question: str, picture: Image) -> str:
    asked = question.format(c=f"the {spec.class_noun}")
    return _named(engine.ask(asked, image=picture, concepts=(), max_tokens=_MAX_ANSWER_TOKENS).text, spec)


def _named(text: str, spec: ConceptSpec) -> str:
    """Put the concept's name where the first "a dog" or "the dog" stands."""
    text = re.sub(
        rf"\b(a|an|the|this) {re.escape(spec.class_noun)}\b", spec.identifier, text, count=1, flags=re.IGNORECASE
    )
    return normalise_text(text, name=spec.name)


def _append(file: Path, draft: dict[str, Any], *, author: str) -> None:
    """Add the draft to the end of a file, which keeps its comments.

    Raises:
        ConfigError: The file would no longer say what it said; it is left as it was.
    """
    before = file.read_text(encoding="utf-8-sig")
    note = f"# Drafted by the backbone {author} (`omnifarm concept describe`): read it before training."
    text = yaml.safe_dump(draft, sort_keys=False, allow_unicode=True, width=120)
    after = f"{before.rstrip()}\n\n{note}\n{text}"
    try:
        is_kept = yaml.safe_load(after) == {**yaml.safe_load(before), **draft}
    except yaml.YAMLError:
        is_kept = False
    if not is_kept:
        raise ConfigError(f"{file}: expected `key: value` lines without qa or captions; add the draft by hand:\n{text}")
    file.write_text(after, encoding="utf-8")
