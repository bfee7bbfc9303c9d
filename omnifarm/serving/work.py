"""What a request asks of the model, in pieces: read, write, draw, encode, decode.

A request is a script, a generator that yields work and is given the results; several works yielded together run
side by side. Scripts decide, tasks do: neither knows who else is being served.

Shape letters: N latent tokens of one picture, E numbers per token.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.flow import SamplingOptions, Step
from omnifarm.backbone.kv_pool import PooledContext
from omnifarm.backbone.segments import Segment

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """Put segments behind a context; gives the new `PooledContext`."""

    context: PooledContext
    """What they continue."""
    segments: Sequence[Segment]
    """Clean ones; soft slots point into the table of residents."""
    key: bytes | None = None
    """Digest of context and shared beginning, made by the server; None where nothing is shared."""
    num_shared: int | None = None
    """Tokens of the beginning that the key stands for; None for all."""
    is_towards_text: bool = False
    """Whether somebody waits for text behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Write:
    """Let the model write; gives the start token and what was written, as a list of ids. The context stays as it was.

    The end token is not part of it, so that a text has ended by itself when it holds fewer tokens than it may. The
    official code counts the start token and loses the last prediction at its limit: its limit is `max_tokens` + 1.
    """

    context: PooledContext
    """What has been read."""
    max_tokens: int
    """Tokens written at most; at least 1."""
    temperature: float | None = None
    """None for the likeliest token, else above 0."""
    generator: torch.Generator | None = None
    """CPU generator for draws."""
    on_tokens: Callable[[list[int]], None] | None = None
    """Told start token and all that is written so far, after every pass."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    """The three contexts of a drawing."""

    main: PooledContext
    """Everything the request says."""
    without_text: PooledContext
    """What text guidance steers away from."""
    without_image: PooledContext
    """What image guidance steers away from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latents:
    """A picture as the denoiser sees it."""

    tokens: Tensor
    """(N, E) latent tokens."""
    grid: tuple[int, int]
    """(rows, columns)."""
    num_evaluations: int = 0
    """Velocities computed for it, guidance branches included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Latent tokens that a drawing is not to invent: at time t they are (1 - t) x_0 + t noise of a given picture."""

    tokens: Tensor
    """(N, E) x_0, the picture's clean latents."""
    is_held: Tensor
    """(N,) bool, which of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """Walk from noise to a picture; gives `Latents`."""

    guidance: Guidance
    """What to draw."""
    grid: tuple[int, int]
    """(rows, columns) of latent tokens."""
    options: SamplingOptions
    """Steps and guidance."""
    noise: Tensor
    """(N, E) standard normal."""
    reuse: int = 1
    """Evaluate every `reuse`-th step and extrapolate between; 1 evaluates all."""
    on_step: Callable[[Step], "Decode | None"] | None = None
    """Told after every step; what it returns is decoded beside the drawing."""
    held: "Held | None" = None
    """What of the picture is given."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encode:
    """A picture to clean latents, drawn from the codec's posterior as the official code does; gives `Latents`."""

    image: Image.Image
    """RGB, of the backbone's size."""
    generator: torch.Generator
    """For the draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decode:
    """Latents to a picture; gives an RGB image."""

    latents: Latents
    """What was drawn."""
    on_image: Callable[[Image.Image], None] | None = None
    """Told the picture, for decoding that nobody waits for."""


Work = Read | Write | Draw | Encode | Decode

Script = Generator[Sequence[Work], list[Any], T]
"""Yields works that run side by side, is sent their results in the same order, returns the request's result."""
