"""Filling a hole with patches of the same picture, from coarse to fine (Barnes et al. 2009; Wexler et al. 2007).

Every pixel of the hole holds an offset to a place outside the hole whose patch looks like its own surroundings.
Offsets are passed between neighbours and improved by chance; the hole is then repainted as the mean of what the
patches over each pixel say. Texture is continued well, structure seldom: see `classical.py` for the limits.

Letters: N pixels of the hole, P pixels of a patch.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from omnifarm.concept.edit_pairs.methods import Mask, Pixels

_RADIUS = 3
_COARSEST_SIDE = 40
_WORKING_SIDE = 320
_ROUNDS = (12, 8, 5, 2)
_SEARCHES = 5
_Integers = NDArray[np.int64]


class PatchInpainter:
    """Fills a hole from patches of the rest of the picture."""

    def inpaint(self, pixels: Pixels, *, mask: Mask, seed: int) -> Pixels:
        """See `Inpainter.inpaint`; the same seed gives the same picture."""
        rng = np.random.default_rng(seed)
        height, width = mask.shape
        side = min(_WORKING_SIDE, max(height, width))
        sides = [side]
        while sides[-1] // 2 >= _COARSEST_SIDE:
            sides.append(sides[-1] // 2)
        picture: NDArray[np.float32] | None = None
        offsets: NDArray[np.float64] | None = None
        for level, longer in enumerate(reversed(sides)):
            scale = longer / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            source = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32)
            hole = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
            if picture is None:
                start = cv2.inpaint(source.astype(np.uint8), hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
                guess = start.astype(np.float32)
            else:
                guess = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC).astype(np.float32)
            guess = np.where(hole[:, :, None], guess, source)
            matcher = _Matcher(hole, offsets=offsets, rng=rng)
            for _ in range(_ROUNDS[min(level, len(_ROUNDS) - 1)]):
                matcher.improve(guess)
                guess = matcher.repaint(guess)
            picture, offsets = guess, matcher.offset_map()
        assert picture is not None
        assert offsets is not None
        return _at_full_size(pixels, mask, offsets)


class _Matcher:
    """Nearest patches of one level: for N pixels of the hole, where in the rest their patch is best copied from."""

    def __init__(self, hole: Mask, *, offsets: NDArray[np.float64] | None, rng: np.random.Generator) -> None:
        self._rng = rng
        self._hole = hole
        self._shape = np.array(hole.shape)
        reach = np.mgrid[-_RADIUS : _RADIUS + 1, -_RADIUS : _RADIUS + 1].reshape(2, -1).T
        self._patch: _Integers = reach.astype(np.int64)
        # Patches may be copied from where they neither touch the hole nor leave the picture.
        side = 2 * _RADIUS + 1
        touched = cv2.dilate(hole.astype(np.uint8), np.ones((side, side), np.uint8)).astype(bool)
        self._usable = ~touched
        for edge in (np.s_[:_RADIUS], np.s_[-_RADIUS:]):
            self._usable[edge] = False
            self._usable[:, edge] = False
        if not self._usable.any():
            self._usable = ~hole
        self._places: _Integers = np.argwhere(self._usable)
        # Pixels of the hole and those around it whose patch reaches in: all have a say in repainting.
        self._pixels: _Integers = np.argwhere(cv2.dilate(hole.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool))
        self._index = np.full(hole.shape, -1)
        self._index[tuple(self._pixels.T)] = np.arange(len(self._pixels))
        self._matches = self._places[rng.integers(len(self._places), size=len(self._pixels))]
        self._costs: NDArray[np.float32] = np.full(len(self._pixels), np.inf, np.float32)
        if offsets is not None:
            factor = self._shape / np.array(offsets.shape[:2])
            coarse = np.minimum(self._pixels / factor, np.array(offsets.shape[:2]) - 1).astype(int)
            moved = np.rint(self._pixels + offsets[tuple(coarse.T)] * factor).astype(np.int64)
            moved = np.clip(moved, 0, self._shape - 1)
            known = self._usable[tuple(moved.T)]
            self._matches[known] = moved[known]

    def improve(self, picture: NDArray[np.float32]) -> None:
        """Try neighbours' offsets and random places; keep what fits better."""
        own = self._patches(picture, self._pixels)
        self._costs = self._cost(own, picture, self._matches)
        for step in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            neighbours = np.clip(self._pixels - step, 0, self._shape - 1)
            found = self._index[tuple(neighbours.T)]
            candidate = np.where((found >= 0)[:, None], self._matches[found] + step, self._matches)
            self._try(own, picture, candidate)
        radius = float(max(self._shape)) / 2
        for _ in range(_SEARCHES):
            jump = self._rng.uniform(-radius, radius, self._matches.shape)
            self._try(own, picture, np.rint(self._matches + jump).astype(np.int64))
            radius /= 2
        self._try(own, picture, self._places[self._rng.integers(len(self._places), size=len(self._pixels))])

    def repaint(self, picture: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the picture with the hole painted by the weighted mean of all patches over each pixel."""
        # Pixels whose patch fits well count more; the scale is this round's own.
        scale = float(np.percentile(self._costs, 60)) + 1e-3
        weights = np.exp(-self._costs / (2 * scale)) + 1e-4
        total = np.zeros((*self._hole.shape, 4), np.float32)
        for reach in self._patch:
            to, source = self._pixels + reach, np.clip(self._matches + reach, 0, self._shape - 1)
            inside = ((to >= 0) & (to < self._shape)).all(axis=1)
            colours = picture[tuple(source[inside].T)]
            weighted = np.concatenate([colours * weights[inside, None], weights[inside, None]], axis=1)
            # Each pixel of the list goes to a different place: no sum is lost.
            total[tuple(to[inside].T)] += weighted
        painted = total[:, :, :3] / np.maximum(total[:, :, 3:], 1e-6)
        return np.where((self._hole & (total[:, :, 3] > 0))[:, :, None], painted, picture)

    def offset_map(self) -> NDArray[np.float64]:
        """Return (H, W, 2) offsets, zero outside the hole."""
        offsets = np.zeros((*self._hole.shape, 2))
        offsets[tuple(self._pixels.T)] = self._matches - self._pixels
        return offsets

    def _try(self, own: NDArray[np.float32], picture: NDArray[np.float32], candidate: _Integers) -> None:
        candidate = np.clip(candidate, 0, self._shape - 1)
        allowed = self._usable[tuple(candidate.T)]
        if not allowed.any():
            return
        costs = self._cost(own[allowed], picture, candidate[allowed])
        better = costs < self._costs[allowed]
        chosen = np.flatnonzero(allowed)[better]
        self._matches[chosen] = candidate[chosen]
        self._costs[chosen] = costs[better]

    def _patches(self, picture: NDArray[np.float32], centres: _Integers) -> NDArray[np.float32]:
        places = np.clip(centres[:, None] + self._patch, 0, self._shape - 1)
        return np.asarray(picture[places[..., 0], places[..., 1]], dtype=np.float32)

    def _cost(self, own: NDArray[np.float32], picture: NDArray[np.float32], centres: _Integers) -> NDArray[np.float32]:
        gap = own - self._patches(picture, centres)
        return np.asarray(np.einsum("npc,npc->n", gap, gap) / gap[0].size, dtype=np.float32)


def _at_full_size(pixels: Pixels, mask: Mask, offsets: NDArray[np.float64]) -> Pixels:
    """Copy the hole's pixels from the full picture: several nearby offsets, averaged, keep texture and hide seams."""
    height, width = mask.shape
    factor = np.array([height, width]) / np.array(offsets.shape[:2])
    targets = np.argwhere(mask)
    total = np.zeros((len(targets), 3), np.float64)
    weight = np.zeros((len(targets), 1))
    limit = np.array([height, width]) - 1
    for shift in np.mgrid[-1:2, -1:2].reshape(2, -1).T:
        coarse = np.clip((targets / factor).astype(int) + shift, 0, np.array(offsets.shape[:2]) - 1)
        offset = offsets[tuple(coarse.T)]
        source = np.clip(np.rint(targets + offset * factor).astype(int), 0, limit)
        good = (np.abs(offset).sum(axis=1) > 0) & ~mask[tuple(source.T)]
        share = np.where(good, 4.0 if not shift.any() else 1.0, 0.0)[:, None]
        total += share * pixels[tuple(source.T)]
        weight += share
    filled = pixels.copy()
    known = weight[:, 0] > 0
    filled[tuple(targets[known].T)] = np.rint(total[known] / weight[known]).astype(np.uint8)
    if not known.all():
        left = np.zeros(mask.shape, np.uint8)
        left[tuple(targets[~known].T)] = 1
        filled = np.asarray(cv2.inpaint(filled, left, 3, cv2.INPAINT_TELEA), dtype=np.uint8)
    return filled
