"""Photographs kept from training, so that a loss can be measured on what was never learned from."""

from dataclasses import replace

from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError


def split_held_out(spec: ConceptSpec, *, count: int) -> tuple[ConceptSpec, ConceptSpec]:
    """Cut a concept in two along its photographs.

    Questions and edits go with their picture; a question about the concept as such is learned, not measured. Pictures
    without the concept serve both parts.

    Args:
        spec: The whole concept.
        count: Photographs to hold out, the last ones (>= 1).

    Returns:
        What is learned from, and what is measured on.

    Raises:
        ConceptError: No photograph would be left to learn from.
    """
    if count >= len(spec.images):
        raise ConceptError(
            f"concept {spec.name!r} has {len(spec.images)} photographs, of which {count} were to be held out; "
            "hold out fewer, or add photographs",
            concept=spec.name,
        )
    kept, held = spec.images[:-count], spec.images[-count:]
    out = {image.digest for image in held}
    return (
        replace(
            spec,
            images=kept,
            qa=tuple(qa for qa in spec.qa if qa.image is None or qa.image.digest not in out),
            edits=tuple(edit for edit in spec.edits if not {edit.source.digest, edit.target.digest} & out),
        ),
        replace(
            spec,
            images=held,
            qa=tuple(qa for qa in spec.qa if qa.image is not None and qa.image.digest in out),
            edits=tuple(edit for edit in spec.edits if edit.source.digest in out),
        ),
    )
