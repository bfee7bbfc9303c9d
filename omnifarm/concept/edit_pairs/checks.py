"""The automatic check of a removal: numbers with limits, every one kept with the pair.

A check cannot see whether the result is plausible; it finds the failures that are cheap to find. Its limits were
chosen on 32 photographs of six subjects so that every good removal passes (docs/results.md); what passes still wants
a look (OMNIPBENCH section 4.2).
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from omnifarm.concept.edit_pairs.classical import dilate
from omnifarm.concept.edit_pairs.methods import Box, Mask, Pixels


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One number and the range it must lie in."""

    name: str
    """What was measured."""
    value: float
    """The number."""
    low: float
    """Smallest value that passes."""
    high: float
    """Largest value that passes."""
    fault: str
    """What is wrong when it does not pass, in words for a person."""

    @property
    def has_passed(self) -> bool:
        """Whether the value lies in its range."""
        return self.low <= self.value <= self.high


def check_removal(
    source: Pixels, target: Pixels, *, subject: Mask, hole: Mask, found_again: Box | None = None
) -> tuple[Check, ...]:
    """Measure a removal.

    Args:
        source: The photograph.
        target: The photograph without the subject.
        subject: The subject's pixels.
        hole: What was filled: the subject and a margin.
        found_again: Where a detector that understands the class still sees the subject in the target.
    """
    outside = ~hole
    gap = np.abs(source.astype(np.int16) - target.astype(np.int16)).max(axis=2)
    around = dilate(hole, share=0.08) & outside
    border = np.concatenate([subject[0], subject[-1], subject[:, 0], subject[:, -1]])
    measured = [
        Check(name="hole_share", value=_mean(hole), low=0.02, high=0.70, fault="the mask is empty or most of the picture"),
        Check(name="border_share", value=_mean(border), low=0.0, high=0.2, fault="the mask runs along the picture's border"),
        Check(name="outside_difference", value=float(gap[outside].max(initial=0)), low=0.0, high=0.0, fault="pixels outside the mask changed"),
        Check(name="change", value=_mean(gap[subject]), low=10.0, high=255.0, fault="the target shows what the source shows"),
    ]  # fmt: skip
    if subject.any():
        fault = "the mask is ragged: it has probably run into the background"
        measured.append(Check(name="solidity", value=_solidity(subject), low=0.7, high=1.0, fault=fault))
    if around.any() and subject.any():
        measured += _textures(source, target, subject=subject, hole=hole, around=around)
    if found_again is not None:
        left, top, right, bottom = found_again
        share = float(hole[top:bottom, left:right].mean()) if right > left and bottom > top else 0.0
        fault = "the detector still finds the subject in the filled place"
        measured.append(Check(name="found_again", value=share, low=0.0, high=0.5, fault=fault))
    return tuple(measured)


def _textures(source: Pixels, target: Pixels, *, subject: Mask, hole: Mask, around: Mask) -> list[Check]:
    detail = _detail(target)
    texture = (_mean(detail[hole]) + 0.5) / (_mean(detail[around]) + 0.5)
    edge = dilate(hole, share=0.004) & ~_eroded(hole, share=0.004)
    seam = (_mean(detail[edge]) + 0.5) / (_mean(detail[around & ~edge]) + 0.5)
    bins = _colour_bins(source), _colour_bins(target)
    of_subject, of_hole = _histogram(bins[0][subject]), _histogram(bins[1][hole])
    of_around = _histogram(bins[0][around])
    left = float(np.minimum(of_hole, of_subject).sum() - np.minimum(of_hole, of_around).sum())
    far = ~hole & ~around
    of_far = _histogram(bins[0][far]) if far.any() else of_around
    # How much of what surrounds the hole has colours that the subject has and the rest of the picture has not.
    own = of_subject / (of_subject + of_far + 1e-9) > 0.85
    around_share = float((own & (of_subject > 1e-3))[bins[0][around]].mean())
    return [
        Check(name="texture", value=texture, low=0.25, high=3.0, fault="the filled place is much smoother or rougher than its surroundings"),
        Check(name="seam", value=seam, low=0.0, high=2.0, fault="the edge of the filled place shows"),
        Check(name="colours_left", value=left, low=-1.0, high=-0.5, fault="the filled place is not clearly more like its surroundings than like the subject"),
        Check(name="colours_around", value=around_share, low=0.0, high=0.2, fault="part of the subject seems to be left beside the mask"),
    ]  # fmt: skip


def _detail(pixels: Pixels) -> NDArray[np.float32]:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return np.asarray(np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 2.0)), dtype=np.float32)


def _colour_bins(pixels: Pixels) -> NDArray[np.int64]:
    lab = cv2.cvtColor(cv2.GaussianBlur(pixels, (0, 0), 1.0), cv2.COLOR_RGB2LAB).astype(np.int64)
    return np.asarray(lab[:, :, 0] // 32 * 256 + lab[:, :, 1] // 16 * 16 + lab[:, :, 2] // 16, dtype=np.int64)


def _histogram(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.bincount(bins, minlength=8 * 256) / max(len(bins), 1)


def _solidity(mask: Mask) -> float:
    """Return the mask's area over that of its convex hull."""
    hull = cv2.convexHull(np.argwhere(mask).astype(np.int32))
    return min(1.0, float(mask.sum()) / max(float(cv2.contourArea(hull)), 1.0))


def _eroded(mask: Mask, *, share: float) -> Mask:
    return ~dilate(~mask, share=share)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if values.size else 0.0
