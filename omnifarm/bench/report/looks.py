"""Where a concept's identifier looks in a photograph (paper: Fig. 8): what is drawn and what is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MAX_SHOWN = 6
_TOP = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look at one photograph."""

    photo: Image.Image = field(repr=False)
    """RGB."""
    weights: NDArray[np.float32]
    """(rows, columns) attention of the identifier over the picture's patches, at least 0."""
    subject: NDArray[np.bool_] | None = None
    """(height, width) pixels of the concept, where they are known exactly."""

    @property
    def concentration(self) -> float:
        """Share of the attention on the tenth of the patches that gets most; 0.1 is evenly spread."""
        ordered = np.sort(self.weights.ravel())[::-1]
        count = max(1, round(_TOP * ordered.size))
        return float(ordered[:count].sum() / ordered.sum())

    @property
    def on_subject(self) -> tuple[float, float] | None:
        """Share of the attention on the concept, and the share of the picture it covers; None where unknown."""
        if self.subject is None:
            return None
        size = (self.weights.shape[1], self.weights.shape[0])
        covered = np.asarray(Image.fromarray(self.subject.astype(np.float32)).resize(size, Image.Resampling.BOX))
        return float((self.weights * covered).sum() / self.weights.sum()), float(covered.mean())


Looks = Mapping[str, Mapping[str, Look]]
"""Row to concept to its look."""


def looks_table(looks: Looks, titles: Mapping[str, str]) -> list[list[str]]:
    """Return head and lines: per row how concentrated attention is and how much of it lies on the concept."""
    lines = [["row", "concepts", "on the top tenth of patches", "on the concept", "the concept covers"]]
    for row, found in looks.items():
        subjects = [one.on_subject for one in found.values()]
        known = [pair for pair in subjects if pair is not None]
        shares = [f"{np.mean([pair[place] for pair in known]):.3f}" for place in (0, 1)] if known else ["unknown"] * 2
        concentration = np.mean([one.concentration for one in found.values()])
        lines.append([titles.get(row, row), str(len(found)), f"{concentration:.3f}", *shares])
    return lines


def draw_looks(figure: Any, looks: Looks, titles: Mapping[str, str]) -> bool:
    """Draw photographs and, below, where each row's identifier looks; say whether there was anything to draw."""
    names: Sequence[str] = [*dict.fromkeys(name for found in looks.values() for name in found)][:_MAX_SHOWN]
    if not names:
        return False
    figure.set_size_inches(1.6 * len(names) + 1, 1.7 * (1 + len(looks)))
    axes = figure.subplots(1 + len(looks), len(names), squeeze=False)
    for column, name in enumerate(names):
        photo = next(found[name].photo for found in looks.values() if name in found)
        axes[0, column].imshow(photo)
        axes[0, column].set_title(name, fontsize=8)
        for place, (row, found) in enumerate(looks.items(), start=1):
            if name in found:
                width, height = found[name].photo.size
                axes[place, column].imshow(found[name].photo)
                axes[place, column].imshow(
                    found[name].weights,
                    cmap="inferno",
                    alpha=0.65,
                    extent=(0, width, height, 0),
                    interpolation="nearest",
                )
            if column == 0:
                axes[place, column].set_ylabel(titles.get(row, row), fontsize=7)
    for axis in axes.ravel():
        axis.set_xticks([])
        axis.set_yticks([])
    return True
