"""How much of the machine an engine may use, and how large a step suits a backbone on a device."""

from dataclasses import dataclass

import torch

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.image_ops import latent_grid
from omnifarm.serving.door import Door
from omnifarm.serving.requests import Limits
from omnifarm.serving.scheduler import Budget

_DRAWINGS_A_STEP = 8
_GUIDED = 2
"""Branches of a drawing with text guidance."""
_MARKERS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What the engine may use."""

    cached_tokens: int = 65536
    """Rows of keys and values for everything under way and everything kept (miniature: 9 kB each)."""
    kept_prefixes: float = 0.25
    """Largest share of them that system prompts and worked examples may hold between requests."""
    concepts: int = 16384
    """Concepts in memory."""
    refresh_s: float = 2.0
    """Seconds after which a concept in use is looked up again."""
    budget: Budget | None = None
    """What one step may cost; None for `usual_budget`."""


def usual_budget(config: BackboneConfig, *, device: torch.device) -> Budget:
    """Return what a step may cost where nobody says otherwise.

    On an accelerator a step has room for eight of the backbone's usual guided drawings: 16 thousand tokens for the
    released 7B model, whose 512-pixel drawing alone takes two. A CPU is busy with few tokens, and larger steps would
    only make writers wait.

    Args:
        config: For the size of its usual drawing.
        device: Where the backbone lies.
    """
    least = Budget()
    if device.type == "cpu":
        return least
    rows, columns = latent_grid(Door(config, limits=Limits()).generation_size, config=config)
    drawing = _GUIDED * (rows * columns + _MARKERS)
    return Budget.of(max(least.step_tokens, _DRAWINGS_A_STEP * drawing))
