"""Drawing by flow matching: the timestep grid, guidance, the Euler loop.

Works on velocities given by callables; knows neither the model nor what the contexts hold.

Shape letters: N latent tokens of one image, E numbers per token (p*p*Z).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig
from omnifarm.errors import ConfigError

RENORM_TYPES = ("global", "channel", "text_channel")
"""Ways to keep a guided velocity from growing."""

_SHIFTS = (0.01, 100.0)
"""Beyond them all steps but one are at one end of the grid, and what is drawn is noise or nothing."""

Velocity = Callable[[Tensor, float], Tensor]
"""(x_NE at time t, t) -> velocity (N, E)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How an image is drawn. Defaults are those of text-to-image."""

    num_timesteps: int = 50
    """Grid values from 1 to 0; one model step less than this."""
    timestep_shift: float = 3.0
    """Shift s of the grid, t <- s*t / (1 + (s-1)*t)."""
    cfg_text_scale: float = 4.0
    """Text guidance; 1 or less switches all guidance off."""
    cfg_img_scale: float = 1.0
    """Image guidance; 1 or less switches it off."""
    cfg_interval: tuple[float, float] = (0.4, 1.0)
    """Guidance is active at shifted times above the first and up to the second."""
    cfg_renorm_type: str = "global"
    """One of `RENORM_TYPES`."""
    cfg_renorm_min: float = 0.0
    """Least factor of the renormalisation; 1 switches it off."""

    def __post_init__(self) -> None:
        if self.num_timesteps < 1:
            raise ConfigError(f"num_timesteps must be at least 1, found {self.num_timesteps}")
        if not _SHIFTS[0] <= self.timestep_shift <= _SHIFTS[1]:
            raise ConfigError(
                f"timestep_shift must be within {_SHIFTS[0]} to {_SHIFTS[1]}, found {self.timestep_shift}"
            )
        if self.cfg_renorm_type not in RENORM_TYPES:
            raise ConfigError(f"cfg_renorm_type must be one of {RENORM_TYPES}, found {self.cfg_renorm_type!r}")
        if not 0 <= self.cfg_renorm_min <= 1:
            raise ConfigError(f"cfg_renorm_min must be within 0 to 1, found {self.cfg_renorm_min}")
        if len(self.cfg_interval) != 2:
            raise ConfigError(f"cfg_interval must hold two times, found {self.cfg_interval!r}")
        if not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise ConfigError(
                f"cfg_interval must hold two times within 0 to 1, the smaller one first, found {list(self.cfg_interval)}"
            )

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, base: Self | None = None) -> Self:
        """Build options from JSON values over `base` (or the class defaults).

        Raises:
            ConfigError: A key is unknown or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        if unknown := set(values) - set(known):
            raise ConfigError(f"unknown sampling options {sorted(unknown)}; known: {known}")
        merged = {name: getattr(base, name) for name in known} if base is not None else {}
        merged.update(values)
        if "cfg_interval" in merged:
            merged["cfg_interval"] = tuple(merged["cfg_interval"])
        return cls(**merged)

    @classmethod
    def for_generation(cls, config: BackboneConfig) -> Self:
        """Return the options for drawing from text: the backbone's own defaults over the class defaults."""
        return cls.from_mapping(_sampling_only(config.defaults.get("generation", {})))

    @classmethod
    def for_editing(cls, config: BackboneConfig) -> Self:
        """Return the options for editing: the backbone's own defaults over the official editing values."""
        official = cls(cfg_img_scale=2.0, cfg_interval=(0.0, 1.0), cfg_renorm_type="text_channel")
        return cls.from_mapping(_sampling_only(config.defaults.get("editing", {})), base=official)

    def scales_at(self, t: float) -> tuple[float, float]:
        """Return (text, image) guidance scales in force at shifted time t; (1, 1) outside the interval."""
        low, high = self.cfg_interval
        # Compared in float32, the precision of the grid: a bound such as 0.4 then means the grid's 0.4.
        time = torch.tensor(t, dtype=torch.float32)
        is_active = bool(time > low) and bool(time <= high)
        return (self.cfg_text_scale, self.cfg_img_scale) if is_active else (1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Branches:
    """The velocity under each context of a request."""

    main: Velocity
    """Everything the request says."""
    without_text: Velocity
    """The context of text guidance."""
    without_image: Velocity
    """The context of image guidance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One finished Euler step, as told to `on_step`."""

    index: int
    """Counts from 0."""
    num_steps: int
    """Steps of the whole run."""
    t: float
    """Time of the evaluation."""
    x: Tensor
    """(N, E) latents before the step."""
    velocity: Tensor
    """(N, E) guided velocity."""
    scales: tuple[float, float]
    """Guidance scales in force (text, image)."""


def shifted(t: Tensor, *, shift: float) -> Tensor:
    """Return s*t / (1 + (s-1)*t)."""
    return shift * t / (1 + (shift - 1) * t)


def schedule(num_timesteps: int, *, shift: float) -> Tensor:
    """Return the (num_timesteps,) float32 grid from 1 down to 0, shifted."""
    return shifted(torch.linspace(1, 0, num_timesteps), shift=shift)


def guide(
    v: Tensor, *, v_text: Tensor | None, v_img: Tensor | None, options: SamplingOptions, t: float | None = None
) -> Tensor:
    """Combine the velocities of the three contexts (BAGEL specification 7.3).

    Args:
        v: (N, E) under the full context.
        v_text: (N, E) without the text; needed when the text scale is above 1.
        v_img: (N, E) without the images; needed when both scales are above 1.
        options: Scales, interval, renormalisation.
        t: Shifted time; None skips the interval test.

    Returns:
        (N, E) guided velocity; `v` itself when guidance is off.
    """
    text_scale, img_scale = (options.cfg_text_scale, options.cfg_img_scale) if t is None else options.scales_at(t)
    if text_scale <= 1:
        return v
    if v_text is None or (img_scale > 1 and v_img is None):
        raise ConfigError(f"guidance scales ({text_scale}, {img_scale}) need the velocities of their contexts")
    guided = v_text + text_scale * (v - v_text)
    if options.cfg_renorm_type == "text_channel":
        guided = _renormalised(guided, like=v, least=options.cfg_renorm_min, per_token=True)
    if img_scale > 1 and v_img is not None:
        guided = v_img + img_scale * (guided - v_img)
    if options.cfg_renorm_type != "text_channel":
        per_token = options.cfg_renorm_type == "channel"
        guided = _renormalised(guided, like=v, least=options.cfg_renorm_min, per_token=per_token)
    return guided


def sample(
    branches: Branches,
    *,
    noise: Tensor,
    options: SamplingOptions,
    on_step: Callable[[Step], None] | None = None,
) -> Tensor:
    """Walk from noise to latents by Euler steps.

    Args:
        branches: Velocities; a branch is asked only when its guidance is in force.
        noise: (N, E) standard normal latents, in token layout.
        options: Grid and guidance.
        on_step: Told after every step; an exception it raises ends the run (cancellation).

    Returns:
        (N, E) latent tokens at time 0.
    """
    grid = schedule(options.num_timesteps, shift=options.timestep_shift)
    x = noise
    for index in range(options.num_timesteps - 1):
        t = float(grid[index])
        text_scale, img_scale = options.scales_at(t)
        v = branches.main(x, t)
        v_text = branches.without_text(x, t) if text_scale > 1 else None
        v_img = branches.without_image(x, t) if text_scale > 1 and img_scale > 1 else None
        velocity = guide(v, v_text=v_text, v_img=v_img, options=options, t=t)
        before, x = x, x - velocity * (grid[index] - grid[index + 1]).item()
        if on_step is not None:
            on_step(
                Step(
                    index=index,
                    num_steps=options.num_timesteps - 1,
                    t=t,
                    x=before,
                    velocity=velocity,
                    scales=(text_scale, img_scale),
                )
            )
    return x


def _renormalised(guided: Tensor, *, like: Tensor, least: float, per_token: bool) -> Tensor:
    dims = (-1,) if per_token else tuple(range(like.dim()))
    target = torch.linalg.vector_norm(like, dim=dims, keepdim=True)
    found = torch.linalg.vector_norm(guided, dim=dims, keepdim=True)
    factor: Tensor = (target / (found + 1e-8)).clamp(min=least, max=1.0)
    return guided * factor


def _sampling_only(values: Mapping[str, Any]) -> dict[str, Any]:
    # These sit in the same blocks but belong to the request, not to the sampler.
    return {key: value for key, value in values.items() if key not in ("size", "keep_unchanged", "attempts")}
