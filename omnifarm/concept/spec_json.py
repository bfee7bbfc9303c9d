"""A concept's spec as JSON values: what a job keeps of the concept it is to learn, so that nobody reads the set again."""

from dataclasses import asdict
from typing import Any

from omnifarm.concept.sources import FileSource
from omnifarm.concept.spec import QA, ConceptImage, ConceptSpec, EditPair, Negative
from omnifarm.errors import ConceptError

_SCHEMA_VERSION = 1
_TEXTS = ("name", "class_noun", "info", "group")


def spec_to_json(spec: ConceptSpec) -> dict[str, Any]:
    """Return everything of a spec but where its pictures are read from."""
    return {
        "schema_version": _SCHEMA_VERSION,
        **{name: getattr(spec, name) for name in _TEXTS},
        "images": [asdict(one) for one in spec.images],
        "extra_info": list(spec.extra_info),
        "qa": [asdict(one) for one in spec.qa],
        "negatives": [asdict(one) for one in spec.negatives],
        "edits": [asdict(one) for one in spec.edits],
    }


def spec_from_json(values: Any, *, source: FileSource, where: str) -> ConceptSpec:
    """Return the spec in `values`; its pictures are read from `source`, and checked, when they are asked for.

    Args:
        values: As `spec_to_json` made them.
        source: Holds the pictures under the paths of the spec.
        where: Names the document in messages.

    Raises:
        ConceptError: The values are no spec of this version.
    """
    try:
        if (version := values["schema_version"]) != _SCHEMA_VERSION:
            raise ValueError(f"schema {version!r}, not {_SCHEMA_VERSION}")
        return ConceptSpec(
            **{name: str(values[name]) for name in _TEXTS},
            images=tuple(map(_image, values["images"])),
            extra_info=tuple(map(str, values["extra_info"])),
            qa=tuple(QA(**{**one, "image": one["image"] and _image(one["image"])}) for one in values["qa"]),
            negatives=tuple(Negative(image=_image(one["image"]), kind=one["kind"]) for one in values["negatives"]),
            edits=tuple(
                EditPair(**{**one, "source": _image(one["source"]), "target": _image(one["target"])})
                for one in values["edits"]
            ),
            source=source,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ConceptError(
            f"{where}: expected a concept's spec, found something else ({what}); submit it again"
        ) from error


def _image(values: Any) -> ConceptImage:
    width, height = values["size"]
    return ConceptImage(**{**values, "size": (width, height)})
