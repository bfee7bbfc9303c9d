"""What can be asked of the engine, and what comes back: plain values. `door.py` builds and checks requests."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL.Image import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.serving.replay import ReplayMode, ReplayTrace


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one request may cost."""

    max_text_chars: int = 2000
    """Characters of a question, a prompt or an instruction."""
    max_concepts: int = 8
    """Concepts in one request."""
    max_new_tokens: int = 1000
    """Tokens of an answer."""
    max_side: int = 1024
    """Pixels of a drawn image's longer side."""
    max_steps: int = 200
    """Values of the denoising schedule."""
    max_images: int = 16
    """Pictures that come with one request."""
    max_waiting: int = 256
    """Requests that may wait to be let in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AskRequest:
    """A question, about a picture or about a concept as such."""

    question: str
    """1..max_text_chars characters."""
    concepts: tuple[str, ...]
    """Bare names in the order their system prompts stand; may be empty."""
    images: tuple[Image, ...]
    """The pictures in question."""
    max_tokens: int
    """New tokens at most."""
    temperature: float | None
    """None answers greedily; otherwise > 0."""
    seed: int
    """For sampling only."""
    think: bool
    """Whether the model thinks in words first (BAGEL's think mode)."""
    tenant: str
    """Whose concepts are meant; empty where there are no tenants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateRequest:
    """A picture from words."""

    prompt: str
    """1..max_text_chars characters."""
    concepts: tuple[str, ...]
    """Bare names in the order their system prompts stand; may be empty."""
    size: tuple[int, int]
    """(height, width) in pixels."""
    options: SamplingOptions
    """Steps and guidance."""
    seed: int
    """Same request, same seed: same picture."""
    replay: ReplayMode
    """Whether the concept is asked first what the prompt leaves open."""
    think: bool
    """Whether the model thinks in words first (BAGEL's think mode)."""
    tenant: str
    """Whose concepts are meant; empty where there are no tenants."""
    partial_every: int
    """Steps between partial images; 0 for none."""
    step_reuse: int
    """Evaluate every n-th step and extrapolate between; 1 evaluates all and is exact."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRequest:
    """A picture from a picture and an instruction."""

    images: tuple[Image, ...]
    """The sources; the last decides the size of the result."""
    instruction: str
    """1..max_text_chars characters."""
    concepts: tuple[str, ...]
    """Bare names in the order their system prompts stand; may be empty."""
    options: SamplingOptions
    """Steps and guidance."""
    seed: int
    """Same request, same seed: same picture."""
    replay: ReplayMode
    """Whether the concept is asked first what the instruction leaves open."""
    think: bool
    """Whether the model thinks in words first (BAGEL's think mode)."""
    tenant: str
    """Whose concepts are meant; empty where there are no tenants."""
    partial_every: int
    """Steps between partial images; 0 for none."""
    step_reuse: int
    """Evaluate every n-th step and extrapolate between; 1 evaluates all and is exact."""
    keep_unchanged: bool
    """Take pixels that the edit left alone from the source, see `keeping.py`."""
    attempts: int
    """Pictures at most where a concept is to be removed, see `checking.py`; 1 looks at none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model says."""

    text: str
    """Decoded answer, concepts spelled by their identifiers."""
    concepts: tuple[str, ...]
    """Bare names of the concepts that were in context."""
    num_tokens: int
    """Tokens the model wrote, a thought included."""
    num_prompt_tokens: int
    """Tokens it read, pictures and system prompts included."""
    is_complete: bool
    """Whether the model ended the answer itself, and not the limit."""
    thought: str | None
    """What was thought first, in think mode."""
    timings: Mapping[str, float]
    """Seconds by phase: `queue_s`, `prefill_s`, `first_token_s` (from submission), `decode_s`, `total_s`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """What the model draws."""

    image: Image = field(repr=False)
    """RGB."""
    prompt: str
    """What was drawn in the end: the request, or what replay made of it."""
    replay: tuple[ReplayTrace, ...]
    """One trace for each concept that was consulted; one with status `off` when none was."""
    concepts: tuple[str, ...]
    """Bare names of the concepts that were in context."""
    seed: int
    """The seed that was used."""
    num_evaluations: int
    """Velocities computed by the denoising loop, guidance branches included."""
    num_prompt_tokens: int
    """Tokens read for the drawing itself, by the branch that sees everything."""
    thought: str | None
    """What was thought first, in think mode."""
    timings: Mapping[str, float]
    """Seconds by phase: `queue_s`, `replay_s`, `prefill_s`, `denoise_s`, `decode_s`, `total_s`."""
    num_image_tokens: int = 0
    """How many of `num_prompt_tokens` are those of pictures."""
    num_attempts: int = 1
    """Pictures drawn until this one: more than one where the concept to be removed was still seen in the ones before."""
    is_gone: bool | None = None
    """Whether the concept to be removed is no longer seen in it; None where nobody looked."""


Request = AskRequest | GenerateRequest | EditRequest
"""Anything the engine takes."""

Result = Answer | Picture
"""Anything that comes of it."""
