"""Locating, segmenting and filling with classical image processing: no weights, no download, clear limits.

What works: one subject that stands out by colour from a calm surrounding and does not fill the frame. What does not:
subjects in the colours of their background, several alike, fur and glass at the edge, shadows and reflections (they
stay), and large holes, which are continued as texture and not as a scene. The automatic check is there to catch these;
the review is there because it does not catch all.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from omnifarm.concept.edit_pairs.methods import Box, Mask, Pixels

_WORKING_SIDE = 320
_FRAME = 0.06
_BORDER_COLOURS = 6


class ContrastLocator:
    """Finds the largest thing whose colours the picture's border does not have."""

    def locate(self, pixels: Pixels, *, class_noun: str) -> Box | None:
        """See `Locator.locate`; the class is not understood."""
        del class_noun
        small, scale = _reduced(pixels)
        height, width = small.shape[:2]
        distance = _distance_to_border_colours(small)
        y, x = np.mgrid[0:height, 0:width]
        centre = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) * 4
        salience = distance * np.exp(-1.5 * centre)
        scaled = (255 * salience / max(float(salience.max()), 1e-6)).astype(np.uint8)
        _, found = cv2.threshold(scaled, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        closed = cv2.morphologyEx(found, cv2.MORPH_CLOSE, _disc(0.02 * max(height, width)))
        subject = _largest(closed.astype(bool), min_share=0.25)
        if not subject.any():
            return None
        rows, columns = np.flatnonzero(subject.any(axis=1)), np.flatnonzero(subject.any(axis=0))
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) / scale
        full = pixels.shape[:2][::-1]
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.minimum(np.ceil(box[2:]).astype(int), full)
        return int(left), int(top), int(right), int(bottom)


class GrabCutSegmenter:
    """Cuts the subject out of its box by colour models of inside and outside (Rother et al. 2004)."""

    def segment(self, pixels: Pixels, *, box: Box, class_noun: str) -> Mask:
        """See `Segmenter.segment`; the class is not understood."""
        del class_noun
        small, scale = _reduced(pixels)
        height, width = small.shape[:2]
        left, top, right, bottom = (round(side * scale) for side in box)
        margin = round(0.08 * max(height, width))
        labels = np.full((height, width), cv2.GC_BGD, np.uint8)
        inside = np.s_[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
        labels[inside] = cv2.GC_PR_BGD
        labels[top:bottom, left:right] = cv2.GC_PR_FGD
        # What has the border's colours is background until the models say otherwise.
        distance = _distance_to_border_colours(small)
        like_border = distance < 0.5 * float(np.median(distance[top:bottom, left:right]) + 1e-6)
        labels[like_border & (labels == cv2.GC_PR_FGD)] = cv2.GC_PR_BGD
        if not np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any() or not (labels == cv2.GC_PR_FGD).any():
            return np.zeros(pixels.shape[:2], bool)
        cv2.setRNGSeed(0)
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small[:, :, ::-1].copy(), labels, None, *models, 6, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
        found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
        closed = cv2.morphologyEx(found, cv2.MORPH_CLOSE, _disc(0.015 * max(height, width)))
        subject = _filled(_largest(closed.astype(bool), min_share=0.1))
        full = cv2.resize(subject.astype(np.float32), pixels.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        return np.asarray(full > 0.5)


class TeleaInpainter:
    """Continues colours inwards (Telea 2004): fit for small holes, a smear in large ones."""

    def inpaint(self, pixels: Pixels, *, mask: Mask, seed: int) -> Pixels:
        """See `Inpainter.inpaint`; there is nothing random."""
        del seed
        filled = cv2.inpaint(pixels[:, :, ::-1].copy(), mask.astype(np.uint8), 5, cv2.INPAINT_TELEA)
        return np.asarray(filled[:, :, ::-1], dtype=np.uint8)


def dilate(mask: Mask, *, share: float) -> Mask:
    """Return a mask grown by a share of the longer side, so that the subject's edge and blur go too."""
    grown = cv2.dilate(mask.astype(np.uint8), _disc(share * max(mask.shape)))
    return np.asarray(grown.astype(bool))


def _reduced(pixels: Pixels) -> tuple[Pixels, float]:
    height, width = pixels.shape[:2]
    scale = min(1.0, _WORKING_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8), scale


def _distance_to_border_colours(pixels: Pixels) -> NDArray[np.float32]:
    """Return (H, W): how far each pixel's Lab colour is from the colours most common along the border."""
    lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    lab = cv2.GaussianBlur(lab, (0, 0), 1.5)
    height, width = lab.shape[:2]
    frame = max(2, round(_FRAME * min(height, width)))
    border = np.concatenate(
        [
            lab[:frame].reshape(-1, 3),
            lab[-frame:].reshape(-1, 3),
            lab[:, :frame].reshape(-1, 3),
            lab[:, -frame:].reshape(-1, 3),
        ]
    )
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 20, 0.5)
    _, labels, centres = cv2.kmeans(
        border.astype(np.float32), _BORDER_COLOURS, None, criteria, 2, cv2.KMEANS_PP_CENTERS
    )  # type: ignore[call-overload]
    # A colour that few border pixels have may be the subject reaching the edge.
    common = np.bincount(labels.ravel(), minlength=_BORDER_COLOURS) > 0.04 * len(border)
    gaps = np.linalg.norm(lab[:, :, None, :] - centres[common][None, None], axis=-1)
    return np.asarray(gaps.min(axis=-1), dtype=np.float32)


def _disc(radius: float) -> NDArray[np.uint8]:
    side = 2 * max(1, round(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), dtype=np.uint8)


def _largest(mask: Mask, *, min_share: float) -> Mask:
    """Return the largest connected part and those of at least a share of its area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return np.zeros_like(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = 1 + np.flatnonzero(areas >= min_share * areas.max())
    return np.asarray(np.isin(labels, kept))


def _filled(mask: Mask) -> Mask:
    """Return a mask without holes."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, contours, -1, 1, cv2.FILLED)
    return np.asarray(filled.astype(bool))
