"""The door: builds requests and refuses wrong ones, before any tensor exists and without asking the store.

Concepts may be named by an explicit list (`["maeve"]` or `["<maeve>"]`) or simply by writing `<maeve>` in the text;
whether they exist is the engine's business.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from PIL.Image import Image

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import RequestError
from omnifarm.serving.replay import ReplayMode
from omnifarm.serving.requests import AskRequest, EditRequest, GenerateRequest, Limits

_USUAL_SIDE = 512
"""Pixels of a drawn picture's sides where neither request nor backbone says otherwise (paper table 6)."""
_NAME = re.compile(r"<([A-Za-z0-9][A-Za-z0-9_-]{0,63})>")
_BARE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_MAX_SEED = 2**63 - 1
_MAX_STEP_REUSE = 4
MAX_ATTEMPTS = 4
"""Pictures that one edit may cost."""

Images = Image | Sequence[Image] | None
"""One picture, several, or none."""


class Door:
    """Builds checked requests for one backbone.

    Args:
        config: Its `defaults` fill in what requests leave out.
        limits: What one request may cost; pictures wider than the backbone's position table are refused in any case.

    Raises:
        ConfigError: The backbone's defaults hold something that does not exist.
    """

    def __init__(self, config: BackboneConfig, *, limits: Limits) -> None:
        # A picture wider than the position table would be drawn with the wrong rows.
        table_side = config.max_latent_size * config.latent_downsample
        self.limits = replace(limits, max_side=min(limits.max_side, table_side))
        self._stride = config.latent_downsample
        self.generation_options = SamplingOptions.for_generation(config)
        """Of drawings that say nothing else."""
        self.editing_options = SamplingOptions.for_editing(config)
        """Of edits that say nothing else."""
        editing = config.defaults.get("editing", {})
        self.keeps_unchanged = bool(editing.get("keep_unchanged", False))
        """Of edits that say nothing else: whether pixels an edit left alone are the source's own."""
        self.attempts = int(editing.get("attempts", 1))
        """Of edits that say nothing else: pictures at most where a concept is to be removed."""
        usual = (min(_USUAL_SIDE, self.limits.max_side),) * 2
        height, width = config.defaults.get("generation", {}).get("size", usual)
        self.generation_size = (int(height), int(width))
        """(height, width) of drawings that say nothing else."""

    def ask(
        self,
        question: str,
        *,
        concepts: Sequence[str] | None = None,
        image: Images = None,
        max_tokens: int = 256,
        temperature: float | None = None,
        seed: int = 0,
        think: bool = False,
        tenant: str = "",
    ) -> AskRequest:
        """Build a question.

        Args:
            question: May name concepts as `<maeve>`.
            concepts: Concepts in context, in this order; None takes those the question names.
            image: What the question is about.
            max_tokens: Longest answer, a thought included.
            temperature: None answers greedily; above 0 samples.
            seed: For sampling.
            think: Have the model think first.
            tenant: Whose concepts are meant.

        Raises:
            RequestError: Something about the request is wrong.
        """
        check_decoding(max_tokens=max_tokens, temperature=temperature, limits=self.limits)
        return AskRequest(
            question=check_text(question, name="question", limits=self.limits),
            concepts=concept_names(question, explicit=concepts, limits=self.limits),
            images=check_images(image, limits=self.limits),
            max_tokens=max_tokens,
            temperature=temperature,
            seed=check_seed(seed),
            think=think,
            tenant=tenant,
        )

    def generate(
        self,
        prompt: str,
        *,
        concepts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        options: SamplingOptions | None = None,
        seed: int = 0,
        replay: str = "unified",
        think: bool = False,
        partial_every: int = 0,
        step_reuse: int = 1,
        tenant: str = "",
    ) -> GenerateRequest:
        """Build a drawing.

        Args:
            prompt: May name concepts as `<maeve>`.
            concepts: Concepts in context, in this order; None takes those the prompt names.
            size: (height, width) in pixels; None takes the backbone's own.
            options: Steps and guidance; None takes the backbone's own.
            seed: Same request, same seed: same picture.
            replay: `unified`, `three_stage` or `off`.
            think: Have the model think first.
            partial_every: Steps between partial images; 0 for none.
            step_reuse: Evaluate every n-th step and extrapolate between: faster, and no longer exact.
            tenant: Whose concepts are meant.

        Raises:
            RequestError: Something about the request is wrong.
        """
        return GenerateRequest(
            prompt=check_text(prompt, name="prompt", limits=self.limits),
            concepts=concept_names(prompt, explicit=concepts, limits=self.limits),
            size=check_size(size or self.generation_size, stride=self._stride, limits=self.limits),
            options=check_options(options or self.generation_options, limits=self.limits),
            seed=check_seed(seed),
            replay=parse_replay(replay),
            think=think,
            tenant=tenant,
            partial_every=_check_range(partial_every, name="partial_every", low=0, high=self.limits.max_steps),
            step_reuse=_check_range(step_reuse, name="step_reuse", low=1, high=_MAX_STEP_REUSE),
        )

    def edit(
        self,
        image: Image | Sequence[Image],
        instruction: str,
        *,
        concepts: Sequence[str] | None = None,
        options: SamplingOptions | None = None,
        seed: int = 0,
        replay: str = "off",
        think: bool = False,
        partial_every: int = 0,
        step_reuse: int = 1,
        keep_unchanged: bool | None = None,
        attempts: int | None = None,
        tenant: str = "",
    ) -> EditRequest:
        """Build an edit.

        Args:
            image: The sources, each resized by the backbone's rule; the last decides the size of the result.
            instruction: May name concepts as `<maeve>`.
            concepts: Concepts in context, in this order; None takes those the instruction names.
            options: Steps and guidance; None takes the backbone's own.
            seed: Same request, same seed: same picture.
            replay: `unified`, `three_stage` or `off`.
            think: Have the model think first.
            partial_every: Steps between partial images; 0 for none.
            step_reuse: Evaluate every n-th step and extrapolate between: faster, and no longer exact.
            keep_unchanged: Take pixels that the edit left alone from the source; None does as the backbone suggests.
            attempts: Where a concept is to be removed ("Remove <maeve> ..."), have the model look whether it is gone
                and draw anew while it is not, up to so many pictures; 1 has nobody look. None does as the backbone
                suggests.
            tenant: Whose concepts are meant.

        Raises:
            RequestError: Something about the request is wrong.
        """
        images = check_images(image, limits=self.limits)
        if not images:
            raise RequestError("expected at least one picture to edit, found none", field="image")
        return EditRequest(
            images=images,
            instruction=check_text(instruction, name="instruction", limits=self.limits),
            concepts=concept_names(instruction, explicit=concepts, limits=self.limits),
            options=check_options(options or self.editing_options, limits=self.limits),
            seed=check_seed(seed),
            replay=parse_replay(replay),
            think=think,
            tenant=tenant,
            partial_every=_check_range(partial_every, name="partial_every", low=0, high=self.limits.max_steps),
            step_reuse=_check_range(step_reuse, name="step_reuse", low=1, high=_MAX_STEP_REUSE),
            keep_unchanged=self.keeps_unchanged if keep_unchanged is None else keep_unchanged,
            attempts=_check_range(
                self.attempts if attempts is None else attempts, name="attempts", low=1, high=MAX_ATTEMPTS
            ),
        )


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


def check_images(images: Images, *, limits: Limits) -> tuple[Image, ...]:
    """Return the pictures unless there are too many.

    Raises:
        RequestError: There are more than `limits` allow.
    """
    given = () if images is None else (images,) if isinstance(images, Image) else tuple(images)
    if len(given) > limits.max_images:
        raise RequestError(
            f"expected at most {limits.max_images} pictures in one request, found {len(given)}",
            field="image",
            limit=limits.max_images,
        )
    return given


def _check_range(value: int, *, name: str, low: int, high: int) -> int:
    if not low <= value <= high:
        raise RequestError(f"expected {name} within {low}..{high}, found {value}", field=name, limit=high)
    return value
