"""Makes removal pairs of concepts: locate, segment, dilate, inpaint, composite, check.

Running it again makes only what is missing: a pair that a person decided on stays, and one that was made the same way
is not made twice. Pairs of photographs that their concept no longer has are dropped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from omnifarm.concept.edit_pairs.checks import Check, check_removal
from omnifarm.concept.edit_pairs.classical import dilate
from omnifarm.concept.edit_pairs.methods import Mask, Methods, Pixels
from omnifarm.concept.edit_pairs.table import Pair, PairState
from omnifarm.concept.images import pixel_digest
from omnifarm.concept.spec import ConceptImage, ConceptSpec

MARGIN = 0.03
"""How far the mask is grown, as a share of the longer side; 2 to 4 % (OMNIPBENCH section 4.2)."""
NOT_MADE = "none"
"""Method of pairs whose target is their source."""

_PREVIEW_SIDE = 384


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Removal:
    """What came of one photograph."""

    target: Pixels
    """The photograph without the subject."""
    hole: Mask
    """What was filled."""
    checks: tuple[Check, ...]
    """What was measured; empty when no subject was found."""
    fault: str
    """Why the automatic check failed; empty when it passed."""


def remove_subject(
    pixels: Pixels, *, class_noun: str, methods: Methods, seed: int = 0, margin: float = MARGIN
) -> Removal:
    """Remove the subject of a photograph.

    Args:
        pixels: (H, W, 3) RGB.
        class_noun: What the subject is, for detectors that understand it.
        methods: The three steps.
        seed: Of the inpainter.
        margin: See `MARGIN`.

    Returns:
        The removal; where nothing was found, the target is the source and `fault` says so.
    """
    nothing = Removal(target=pixels, hole=np.zeros(pixels.shape[:2], bool), checks=(), fault="no subject was found")
    box = methods.locator.locate(pixels, class_noun=class_noun)
    if box is None:
        return nothing
    subject = methods.segmenter.segment(pixels, box=box, class_noun=class_noun)
    if not subject.any():
        return nothing
    hole = dilate(subject, share=margin)
    if hole.all():
        return nothing
    filled = methods.inpainter.inpaint(pixels, mask=hole, seed=seed)
    # Whatever the inpainter did elsewhere, the background is the source's own, bit for bit.
    target = np.where(hole[:, :, None], filled, pixels).astype(np.uint8)
    again = None
    if getattr(methods.locator, "understands_class", False):
        again = methods.locator.locate(target, class_noun=class_noun)
    checks = check_removal(pixels, target, subject=subject, hole=hole, found_again=again)
    faults = [f"{check.fault} ({check.name} {check.value:.2f})" for check in checks if not check.has_passed]
    return Removal(target=target, hole=hole, checks=checks, fault="; ".join(faults))


def build_pairs(
    specs: Mapping[str, ConceptSpec],
    *,
    existing: Sequence[Pair],
    methods: Methods,
    folder: Path,
    only: Sequence[str] = (),
    seed: int = 0,
    max_kept: int = 0,
    is_complete: bool = True,
) -> Iterator[Pair]:
    """Make the pairs of concepts, yielding each as it stands.

    Args:
        specs: The concepts of the set.
        existing: Pairs made before.
        methods: The three steps.
        folder: Where targets, masks and previews are written.
        only: Names of the concepts to make pairs of; empty for all.
        seed: Of the inpainter.
        max_kept: Pairs a concept of the other kind: a photograph of another concept of its class, which a removal
            leaves as it is, so that "remove <c>" comes to mean <c> and not its class (METHOD section 3).
        is_complete: Whether `specs` are all concepts of the set: only then is another concept's photograph that is not
            among theirs known to be gone.
    """
    known = {pair.pair_id: pair for pair in existing}
    for spec in specs.values():
        if only and spec.name not in only:
            continue
        for image in spec.images:
            pair_id = _pair_id(spec, image)
            old = known.pop(pair_id, None)
            is_whole = old is not None and (folder / old.target).is_file()
            if old is not None and is_whole and (old.state.is_reviewed or old.method == (*methods.names, seed)):
                yield replace(old, source=image.path)
            else:
                yield _made(spec, image, pair_id, methods=methods, folder=folder, seed=seed)
        for image in _others(spec, specs)[:max_kept]:
            pair_id = f"{_pair_id(spec, image)}-kept"
            old = known.pop(pair_id, None)
            yield replace(old, source=image.path) if old else _kept(spec, image, pair_id, folder=folder)
    made = {spec.name for spec in specs.values() if not only or spec.name in only}
    digests = {image.digest for spec in specs.values() for image in spec.images}
    for pair in known.values():
        # What is left of a concept just made are photographs it no longer has, and others of its class.
        is_gone = pair.concept in made and (bool(pair.target) or (is_complete and pair.source_digest not in digests))
        if not is_gone:
            yield pair


def _made(spec: ConceptSpec, image: ConceptImage, pair_id: str, *, methods: Methods, folder: Path, seed: int) -> Pair:
    pixels = np.asarray(spec.open_image(image), dtype=np.uint8)
    removal = remove_subject(pixels, class_noun=spec.class_noun, methods=methods, seed=seed)
    target = Image.fromarray(removal.target)
    target_path, mask_path = f"{spec.name}/{pair_id}.png", f"{spec.name}/{pair_id}_mask.png"
    (folder / spec.name).mkdir(parents=True, exist_ok=True)
    target.save(folder / target_path)
    Image.fromarray(removal.hole.astype(np.uint8) * 255).save(folder / mask_path)
    _save_previews(folder, pair_id, source=pixels, hole=removal.hole, target=removal.target)
    return Pair(
        pair_id=pair_id,
        concept=spec.name,
        class_noun=spec.class_noun,
        source=image.path,
        source_digest=image.digest,
        target=target_path,
        target_digest=pixel_digest(target),
        mask=mask_path,
        instruction=_instruction(spec),
        locator=methods.names[0],
        segmenter=methods.names[1],
        inpainter=methods.names[2],
        seed=seed,
        state=PairState.AUTO_FAIL if removal.fault else PairState.AUTO_PASS,
        reason=removal.fault,
        checks={check.name: check.value for check in removal.checks},
    )


def _kept(spec: ConceptSpec, image: ConceptImage, pair_id: str, *, folder: Path) -> Pair:
    pixels = np.asarray(spec.open_image(image), dtype=np.uint8)
    _save_previews(folder, pair_id, source=pixels, hole=np.zeros(pixels.shape[:2], bool), target=pixels)
    return Pair(
        pair_id=pair_id, concept=spec.name, class_noun=spec.class_noun, source=image.path, source_digest=image.digest,
        target="", target_digest=image.digest, mask="", instruction=_instruction(spec), locator=NOT_MADE,
        segmenter=NOT_MADE, inpainter=NOT_MADE, seed=0, state=PairState.AUTO_PASS,
    )  # fmt: skip


def _others(spec: ConceptSpec, specs: Mapping[str, ConceptSpec]) -> list[ConceptImage]:
    own = {image.digest for image in spec.images}
    same_class = [one for one in specs.values() if one.name != spec.name and one.class_noun == spec.class_noun]
    # One photograph of each in turn, so that no single other concept stands for the class.
    turns = max((len(one.images) for one in same_class), default=0)
    found = [one.images[turn] for turn in range(turns) for one in same_class if turn < len(one.images)]
    return [image for image in found if image.digest not in own]


def _pair_id(spec: ConceptSpec, image: ConceptImage) -> str:
    return f"{spec.name}-{image.digest[:12]}"


def _instruction(spec: ConceptSpec) -> str:
    return f"remove {spec.identifier}: {spec.class_noun} from the photo"


def _save_previews(folder: Path, pair_id: str, *, source: Pixels, hole: Mask, target: Pixels) -> None:
    """Write what the review page shows: the source, the source with the hole marked, the target."""
    previews = folder / "previews"
    previews.mkdir(parents=True, exist_ok=True)
    marked = source.copy()
    marked[hole] = (marked[hole] * 0.45 + np.array([255, 40, 90]) * 0.55).astype(np.uint8)
    for name, pixels in (("source", source), ("marked", marked), ("target", target)):
        picture = Image.fromarray(pixels)
        picture.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        picture.save(previews / f"{pair_id}_{name}.jpg", quality=88)
