"""Writes concepts of any layout as plain folders: what was read, one folder a concept, ready to be mended by hand.

Pictures are copied byte for byte, so a concept read back from its plain folder has the digest it had before, and with
it the same artifact. Negatives that every concept shares are written once, to `negatives/` of the set.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from omnifarm.concept.datasets.held_out import HeldOut
from omnifarm.concept.images import DEFAULT_LIMITS
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.errors import ConceptError, ConfigError


def write_plain(folder: Path, specs: Sequence[ConceptSpec], *, held_out: Mapping[str, HeldOut] | None = None) -> None:
    """Write concepts as plain folders.

    Args:
        folder: Where; must be empty or absent.
        specs: The concepts.
        held_out: By name; their pictures go to `test/`, so that they are not learned from by accident.

    Raises:
        ConfigError: `folder` holds something.
        ConceptError: A picture cannot be read.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"expected {folder} to be empty or absent, found files in it; choose another folder")
    pool = _pool(specs)
    if pool:
        writer = _Writer(folder, next(iter(specs)))
        for index, image in enumerate(pool.values()):
            writer.copy(image, f"negatives/{index:04}")
    for spec in specs:
        _write_concept(folder / spec.name, spec, pool=pool, held_out=(held_out or {}).get(spec.name))


def _write_concept(
    folder: Path, spec: ConceptSpec, *, pool: Mapping[str, ConceptImage], held_out: HeldOut | None
) -> None:
    writer = _Writer(folder, spec)
    captions = {}
    for index, image in enumerate(spec.images):
        path = writer.copy(image, f"images/{index:03}")
        if image.caption:
            captions[path] = image.caption
    own = [negative for negative in spec.negatives if negative.image.digest not in pool]
    for index, negative in enumerate(own):
        writer.copy(negative.image, f"negatives/{'easy/' if negative.kind == 'easy' else ''}{index:04}")
    qa = []
    for index, pair in enumerate(spec.qa):
        entry = {"question": pair.question, "answer": pair.answer}
        if pair.image is not None:
            entry["image"] = writer.copy(pair.image, f"qa/{index:04}")
        if pair.kind == "recognition":
            entry["kind"] = "recognition"
        qa.append(entry)
    edits = [
        {
            "source": writer.copy(edit.source, f"edits/{index:04}_source"),
            "target": writer.copy(edit.target, f"edits/{index:04}_target"),
            "instruction": edit.instruction,
        }
        for index, edit in enumerate(spec.edits)
    ]
    for index, image in enumerate(held_out.images if held_out else ()):
        writer.copy(image, f"test/{index:03}")
    values: dict[str, Any] = {
        "class": spec.class_noun, "name": spec.name, "group": spec.group, "info": spec.info,
        "extra_info": list(spec.extra_info), "captions": captions, "qa": qa, "edits": edits,
    }  # fmt: skip
    text = yaml.safe_dump(
        {key: value for key, value in values.items() if value}, sort_keys=False, allow_unicode=True, width=120
    )
    (folder / "concept.yaml").write_text(text, encoding="utf-8")


class _Writer:
    """Copies pictures of one concept into a folder, each once."""

    def __init__(self, folder: Path, spec: ConceptSpec) -> None:
        if spec.source is None:
            raise ConceptError(f"concept {spec.name!r} has no source to copy pictures from; load it from its folder")
        self._folder, self._source = folder, spec.source
        self._written: dict[str, str] = {}

    def copy(self, image: ConceptImage, stem: str) -> str:
        """Copy a picture unless it was; return its path in the folder."""
        if image.digest not in self._written:
            path = f"{stem}.{image.path.rpartition('.')[2].lower()}"
            to = self._folder / path
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(self._source.read(image.path, max_bytes=DEFAULT_LIMITS.max_bytes))
            self._written[image.digest] = path
        return self._written[image.digest]


def _pool(specs: Iterable[ConceptSpec]) -> dict[str, ConceptImage]:
    """Return the easy negatives that every concept of a set has, by digest, in the order of the first."""
    specs = list(specs)
    if len(specs) < 2:
        return {}
    common = set.intersection(*({one.image.digest for one in spec.negatives if one.kind == "easy"} for spec in specs))
    return {one.image.digest: one.image for one in specs[0].negatives if one.image.digest in common}
