"""The parts a sample is made of: text, an image as the vision tower sees it, an image as latents.

A sample is a sequence of segments. Segments say what is there and what is learned from it; they hold no positions,
no masks and no routes, which the packer derives (BAGEL specification 3, 6).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from omnifarm.errors import ConfigError

Expert = Literal["und", "gen"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftSlot:
    """A place in a text segment that is filled from a table of learned vectors instead of the vocabulary."""

    offset: int
    """Index into the ids of the segment."""
    row: int
    """Row of the soft table given to the forward pass."""
    expert: Expert = "und"
    """Whose weights process the token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSegment:
    """Text, framed by the packer with start and end tokens; attends causally."""

    ids: tuple[int, ...]
    """Token ids without the frame. At soft slots any placeholder will do: it is never looked up."""
    has_loss: bool = False
    """Whether each next id, and the end token, is to be predicted."""
    soft: tuple[SoftSlot, ...] = ()
    """Learned vectors inside this segment."""
    end_label: int | None = None
    """An extra label for the end token itself, or None."""
    dropped: bool = False
    """Left out (condition dropout); later positions close the gap."""

    def __post_init__(self) -> None:
        offsets = [slot.offset for slot in self.soft]
        if len(set(offsets)) != len(offsets) or any(not 0 <= offset < len(self.ids) for offset in offsets):
            raise ConfigError(
                f"soft slots must have different offsets inside the {len(self.ids)} ids of the segment, found {offsets}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VitSegment:
    """An image for understanding; all of it attends to all of it."""

    grid: tuple[int, int]
    """(rows, columns) of patches."""
    patches: Tensor | None = None
    """(rows * columns, P*P*channels) float32 in [-1, 1]; or None when `features` are given."""
    features: Tensor | None = None
    """(rows * columns, V) output of the vision tower, before the connector, kept from an earlier pass."""
    end_label: int | None = None
    """A label for the end-of-image token, or None."""
    dropped: bool = False
    """Left out (condition dropout); later positions keep the gap."""

    def __post_init__(self) -> None:
        if (self.patches is None) == (self.features is None):
            raise ConfigError("a ViT segment must have either patches or features")
        _require_rows("ViT segment", self.grid, self.patches if self.features is None else self.features)


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentSegment:
    """An image as latent tokens: a clean condition, or a noised target whose velocity is learned.

    Frames of one video are consecutive segments: all but the first have `split_start` False, all but the last have
    `split_end` False and a `frame_delta`.
    """

    latents: Tensor
    """(rows * columns, p*p*Z) float32 latent tokens: clean, or already noised when `timestep` is given."""
    grid: tuple[int, int]
    """(rows, columns) of latent tokens."""
    timestep_logit: float | None = None
    """u of a training target: t = sigmoid(u), then the configuration's shift; None for a clean condition."""
    noise: Tensor | None = None
    """(rows * columns, p*p*Z) noise of a training target."""
    timestep: float | None = None
    """Time in [0, 1] of latents that are already noised (sampling); used as it is."""
    end_label: int | None = None
    """A label for the end-of-image token, or None."""
    dropped: bool = False
    """Left out (condition dropout); later positions keep the gap."""
    split_start: bool = True
    """Whether this frame opens an attention split."""
    split_end: bool = True
    """Whether this frame closes it."""
    frame_delta: int | None = None
    """How far the rotary position moves after this frame, inside a video."""

    def __post_init__(self) -> None:
        _require_rows("latent segment", self.grid, self.latents)
        if self.timestep is not None and (self.timestep_logit is not None or self.noise is not None):
            raise ConfigError("a latent segment has either a timestep (already noised) or a timestep_logit and noise")
        if (self.timestep_logit is None) != (self.noise is None):
            raise ConfigError("a training target needs both timestep_logit and noise, a clean condition neither")
        if self.noise is not None and self.noise.shape != self.latents.shape:
            raise ConfigError(
                f"noise must have the shape of the latents {tuple(self.latents.shape)}, found {tuple(self.noise.shape)}"
            )

    @property
    def is_target(self) -> bool:
        """Whether a flow loss is taken on this image."""
        return self.timestep_logit is not None

    @property
    def is_noised(self) -> bool:
        """Whether the tokens carry noise (a training target or a sampling step)."""
        return self.timestep_logit is not None or self.timestep is not None


Segment = TextSegment | VitSegment | LatentSegment


def _require_rows(what: str, grid: tuple[int, int], rows: Tensor | None) -> None:
    if rows is not None and (rows.ndim != 2 or rows.shape[0] != grid[0] * grid[1] or min(grid) < 1):
        raise ConfigError(
            f"a {what} with grid {grid} must have {grid[0] * grid[1]} rows, found shape {tuple(rows.shape)}"
        )
