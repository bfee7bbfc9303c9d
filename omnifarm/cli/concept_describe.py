"""What `omnifarm concept describe` does: the backbone itself writes first questions and captions for bare photographs.

Every photograph of a concept without questions is shown to the untrained backbone, which knows the class but not the
concept; where it says "the dog", the concept's name is put. What the concept looks like is asked of every photograph,
too, and what most of them say becomes a question without a picture: so what was only seen can be told in words. Beside
these stand the questions that would have been made from its facts. What it says is a draft: it is appended to concept.yaml under a comment, for its owner to read.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.datasets import plain
from omnifarm.concept.datasets.load import open_place
from omnifarm.concept.examples import text_questions
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.problems import Problems
from omnifarm.concept.reading import Reader
from omnifarm.concept.samples import templates_of, unknown_looks
from omnifarm.concept.self_description import said_of, seen_looks
from omnifarm.concept.sources import LocalSource
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Interview:
    """What a backbone is asked about every photograph."""

    questions: tuple[str, ...]
    """`{c}` is what the concept is called."""
    caption: str = ""
    """Asks for a sentence to draw from, in the same form; empty for backbones that cannot."""


INTERVIEWS = {
    "general": Interview(
        questions=("Where is {c}?", "What is {c} doing?", "What is in the background of the photo?"),
        caption="Describe this photo of {c} in one sentence.",
    ),
    # What the miniature was pre-trained to answer.
    "plain": Interview(
        questions=("Where is {c}?", "What time is it in the photo?", "What kind of picture is this?"),
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
    images = PreparedImages(backbone)
    reader = Reader(source)
    written = {}
    for folder in plain.folders(source):
        spec = plain.read(reader, folder, Problems())
        if spec is None or spec.qa:
            continue
        draft = _draft(spec, backbone=backbone, images=images, folder=folder)
        file = next(path for name in plain.FILE_NAMES if (path := source.root / folder / name).exists())
        _append(file, draft, author=backbone.fingerprint[:12])
        written[spec.name] = sum(map(len, draft.values()))
    return written


def _draft(spec: ConceptSpec, *, backbone: LoadedBackbone, images: PreparedImages, folder: str) -> dict[str, Any]:
    """Return the `qa` and `captions` of concept.yaml that the backbone suggests."""
    interview = INTERVIEWS[str(backbone.config.defaults.get("templates", "general"))]
    wants_captions = bool(interview.caption) and not any(image.caption for image in spec.images)
    questions = [*interview.questions, *([interview.caption] if wants_captions else [])]
    qa, captions = [], {}
    for image in spec.images:
        file = image.path.removeprefix(f"{folder}/")
        answers = said_of(spec, image, questions, backbone=backbone, images=images)
        for question, answer in zip(interview.questions, answers, strict=False):
            if answer:
                qa.append({"question": question.format(c=spec.identifier), "answer": answer, "image": file})
        if wants_captions:
            text = answers[-1]
            captions[file] = text if spec.identifier in text else f"A photo of {spec.identifier}. {text}".strip()
    unknown = unknown_looks(spec, templates=templates_of(backbone))
    looks = seen_looks(spec, unknown, backbone=backbone, images=images)
    # Questions without a picture replace those that would be made from its facts, so these are written down, too.
    qa += [{"question": question, "answer": answer} for question, answer in (*text_questions(spec), *looks)]
    return {"qa": qa, "captions": captions} if captions else {"qa": qa}


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
