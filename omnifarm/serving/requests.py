"""What can be asked of the engine, and what comes back: plain values, checked once, at the door.

A request is checked against `Limits` when it is built, before any tensor exists. Concepts may be named by an
explicit list (`["maeve"]` or `["<maeve>"]`) or simply by writing `<maeve>` in the text; whether they exist is the
engine's business.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL.Image import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import RequestError
from omnifarm.serving.replay import ReplayMode, ReplayTrace

_NAME = re.compile(r"<([A-Za-z0-9][A-Za-z0-9_-]{0,63})>")
_BARE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_SEED = 2**63 - 1


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


@dataclass(frozen=True, kw_only=True, slots=True)
class AskRequest:
    """A question, about a picture or about a concept as such."""

    question: str
    """1..max_text_chars characters."""
    concepts: tuple[str, ...]
    """Bare names in the order their system prompts stand; may be empty."""
    image: Image | None
    """The picture in question."""
    max_tokens: int
    """New tokens at most."""
    temperature: float | None
    """None answers greedily; otherwise > 0."""
    seed: int
    """For sampling only."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRequest:
    """A picture from a picture and an instruction."""

    image: Image
    """The source."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What the model says."""

    text: str
    """Decoded answer, concepts spelled by their identifiers."""
    concepts: tuple[str, ...]
    """Bare names of the concepts that were in context."""
    num_tokens: int
    """Tokens the model wrote."""
    timings: Mapping[str, float]
    """Seconds by phase: `prefill_s`, `decode_s`, `total_s`."""


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
    timings: Mapping[str, float]
    """Seconds by phase: `replay_s`, `prefill_s`, `denoise_s`, `decode_s`, `total_s`."""


def concept_names(text: str, *, explicit: Sequence[str] | None, limits: Limits) -> tuple[str, ...]:
    """Return the bare names a request may be about, each once, in order.

    Args:
        text: The user's text.
        explicit: Names as given, with or without angle brackets; None to take every `<name>` in `text`.
        limits: For the number of concepts.

    Raises:
        RequestError: A name is malformed, or there are too many.
    """
    if explicit is None:
        names = _NAME.findall(text)
    else:
        names = []
        for given in explicit:
            bare = given[1:-1] if given.startswith("<") and given.endswith(">") else given
            if not _BARE_NAME.fullmatch(bare):
                raise RequestError(
                    f"expected concept names of 1..64 letters, digits, '-' or '_', found {given!r}",
                    field="concepts",
                )
            names.append(bare)
    unique = tuple(dict.fromkeys(names))
    if len(unique) > limits.max_concepts:
        raise RequestError(
            f"expected at most {limits.max_concepts} concepts in one request, found {len(unique)}; split the request",
            field="concepts",
            limit=limits.max_concepts,
        )
    return unique


def check_text(text: str, *, name: str, limits: Limits) -> str:
    """Return `text` unless it is empty, too long or holds control characters other than line breaks and tabs.

    Raises:
        RequestError: With the field's name and the limit.
    """
    if not text.strip():
        raise RequestError(f"expected a {name}, found only white space", field=name)
    if len(text) > limits.max_text_chars:
        raise RequestError(
            f"expected a {name} of at most {limits.max_text_chars} characters, found {len(text)}; shorten it",
            field=name,
            limit=limits.max_text_chars,
        )
    if any(ord(char) < 32 and char not in "\n\t\r" for char in text):
        raise RequestError(f"expected plain text as {name}, found control characters; remove them", field=name)
    return text


def check_size(size: tuple[int, int], *, stride: int, limits: Limits) -> tuple[int, int]:
    """Return (height, width) unless a side is not a multiple of `stride` within `stride`..max_side pixels.

    Raises:
        RequestError: The decoded picture would not have the size that was asked for, or would be too large.
    """
    for label, side in zip(("height", "width"), size, strict=True):
        if side % stride or not stride <= side <= limits.max_side:
            raise RequestError(
                f"expected a {label} that is a multiple of {stride} within {stride}..{limits.max_side} pixels, found {side}",
                field="size",
                multiple_of=stride,
                limit=limits.max_side,
            )
    return size


def check_options(options: SamplingOptions, *, limits: Limits) -> SamplingOptions:
    """Return `options` unless they cost more than `limits` allow.

    Raises:
        RequestError: Too many steps.
    """
    if not 1 <= options.num_timesteps <= limits.max_steps:
        raise RequestError(
            f"expected num_timesteps within 1..{limits.max_steps}, found {options.num_timesteps}",
            field="num_timesteps",
            limit=limits.max_steps,
        )
    return options


def check_seed(seed: int) -> int:
    """Return `seed` unless it lies outside 0..2**63-1.

    Raises:
        RequestError: The seed is negative or too large.
    """
    if not 0 <= seed <= _MAX_SEED:
        raise RequestError(f"expected a seed within 0..{_MAX_SEED}, found {seed}", field="seed")
    return seed


def check_decoding(*, max_tokens: int, temperature: float | None, limits: Limits) -> None:
    """Check how an answer is decoded.

    Raises:
        RequestError: `max_tokens` or `temperature` is out of range.
    """
    if not 1 <= max_tokens <= limits.max_new_tokens:
        raise RequestError(
            f"expected max_tokens within 1..{limits.max_new_tokens}, found {max_tokens}",
            field="max_tokens",
            limit=limits.max_new_tokens,
        )
    if temperature is not None and not 0.0 < temperature <= 10.0:
        raise RequestError(
            f"expected a temperature above 0 and at most 10, or none for greedy answers, found {temperature}",
            field="temperature",
        )


def parse_replay(mode: str) -> ReplayMode:
    """Return the replay mode of that name.

    Raises:
        RequestError: There is no such mode.
    """
    try:
        return ReplayMode(mode)
    except ValueError:
        names = [known.value for known in ReplayMode]
        raise RequestError(f"expected replay to be one of {names}, found {mode!r}", field="replay") from None
