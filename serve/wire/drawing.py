"""`/v1/images/generations` and `/v1/images/edits`: pictures from words, and from pictures."""

import base64
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from omnifarm.errors import RequestError
from omnifarm.serving.door import MAX_ATTEMPTS
from omnifarm.serving.replay import ReplayTrace
from omnifarm.serving.requests import Picture
from serve.pictures import OutputFormat
from serve.wire.base import ModelBody

Replay = Literal["unified", "three_stage", "off"]
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
_BAGEL = (
    "num_timesteps",
    "timestep_shift",
    "cfg_text_scale",
    "cfg_img_scale",
    "cfg_interval",
    "cfg_renorm_type",
    "cfg_renorm_min",
)


class DrawBody(ModelBody):
    """What drawings and edits share: OpenAI's fields, then steps and guidance under the names that BAGEL uses."""

    prompt: Annotated[str, Field(min_length=1, examples=["A photo of <maeve> at the beach."])]
    n: Annotated[int, Field(ge=1, le=10, description="Pictures; the seeds are consecutive.")] = 1
    size: Annotated[str | None, Field(max_length=16, description="`WIDTHxHEIGHT` in pixels, or `auto`.")] = None
    output_format: OutputFormat = "png"
    output_compression: Annotated[int, Field(ge=0, le=100, description="Quality of JPEG and WebP.")] = 95
    response_format: Annotated[Literal["b64_json"] | None, Field(description="Pictures come inside the reply.")] = None
    stream: bool = False
    partial_images: Annotated[int, Field(ge=0, le=3, description="Pictures on the way, in a stream.")] = 0
    quality: Annotated[str | None, Field(max_length=16, description="Accepted, without effect.")] = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Annotated[Literal["auto", "low"] | None, Field(description="Accepted, without effect.")] = None

    replay: Annotated[Replay | None, Field(description="Ask the concept first what the prompt leaves open.")] = None
    think: Annotated[bool, Field(description="Let the model think before it draws.")] = False
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Same request, same seed: same picture.")] = 0
    num_timesteps: Annotated[int | None, Field(ge=1, description="Values of the denoising schedule.")] = None
    timestep_shift: Annotated[float | None, Field(ge=0.01, le=100)] = None
    cfg_text_scale: Annotated[float | None, Field(ge=0, le=50)] = None
    cfg_img_scale: Annotated[float | None, Field(ge=0, le=50)] = None
    cfg_interval: Annotated[
        list[float] | None, Field(min_length=2, max_length=2, description="Guidance is on for low < t <= high.")
    ] = None
    cfg_renorm_type: Literal["global", "channel", "text_channel"] | None = None
    cfg_renorm_min: Annotated[float | None, Field(ge=0, le=1)] = None
    step_reuse: Annotated[
        int, Field(ge=1, le=4, description="Evaluate every n-th step and extrapolate between: faster, not exact.")
    ] = 1

    def sampling(self) -> dict[str, Any]:
        """The sampling options that were given."""
        given = {name: getattr(self, name) for name in _BAGEL if getattr(self, name) is not None}
        if "cfg_interval" in given:
            given["cfg_interval"] = tuple(given["cfg_interval"])
        return given

    def height_width(self) -> tuple[int, int] | None:
        """The size that was given as (height, width) in pixels; None leaves it to the backbone.

        Raises:
            RequestError: It is no size.
        """
        if self.size in (None, "auto"):
            return None
        match = _SIZE.fullmatch(self.size or "")
        if match is None:
            raise RequestError(f"expected a size such as 512x512, or auto, found {self.size!r}", field="size")
        return int(match.group(2)), int(match.group(1))


class GenerateBody(DrawBody):
    """A picture from words."""

    style: Annotated[Literal["vivid", "natural"] | None, Field(description="Accepted, without effect.")] = None


class EditBody(DrawBody):
    """A picture from pictures and an instruction; the pictures are the files `image` (or `image[]`)."""

    input_fidelity: Annotated[
        Literal["low", "high"] | None,
        Field(description="high: pixels that the edit leaves alone are the source's own; low: all are drawn anew."),
    ] = None

    attempts: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_ATTEMPTS,
            description="Of a prompt that removes a concept: the model looks whether it is gone and draws anew while it "
            "is not, up to so many pictures; 1: nobody looks.",
        ),
    ] = None

    @property
    def keeps_unchanged(self) -> bool | None:
        """What `input_fidelity` says of pixels an edit leaves alone; None leaves it to the backbone."""
        return None if self.input_fidelity is None else self.input_fidelity == "high"


class Trace(BaseModel):
    """What replay asked, what the concept answered, what was drawn."""

    status: Literal["used", "no_open_fact", "fallback_parse", "fallback_leak", "off"]
    mode: Replay
    concept: str
    request: str
    question: str
    answer: str
    prompt: str
    raw: list[str]
    duration_s: float

    @classmethod
    def of(cls, trace: ReplayTrace) -> "Trace":
        """The trace as JSON."""
        return cls(
            status=trace.status.value,
            mode=trace.mode.value,
            concept=trace.concept,
            request=trace.request,
            question=trace.question,
            answer=trace.answer,
            prompt=trace.prompt,
            raw=list(trace.raw),
            duration_s=trace.duration_s,
        )


class Drawn(BaseModel):
    """A picture and how it came about."""

    b64_json: str
    revised_prompt: Annotated[str, Field(description="What was drawn in the end.")]
    seed: int
    replay: Annotated[list[Trace], Field(description="One entry for each concept that was consulted.")]
    thought: str | None = None
    num_evaluations: int
    num_attempts: Annotated[int, Field(description="Pictures drawn until this one.")]
    is_gone: Annotated[
        bool | None, Field(description="Whether the concept to be removed is no longer seen; null: nobody looked.")
    ]
    timings: dict[str, float]

    @classmethod
    def of(cls, picture: Picture, *, data: bytes) -> "Drawn":
        """The picture as JSON; `data` is its file."""
        return cls(
            b64_json=base64.b64encode(data).decode(),
            revised_prompt=picture.prompt,
            seed=picture.seed,
            replay=[Trace.of(trace) for trace in picture.replay],
            thought=picture.thought or None,
            num_evaluations=picture.num_evaluations,
            num_attempts=picture.num_attempts,
            is_gone=picture.is_gone,
            timings=dict(picture.timings),
        )


class TokenDetails(BaseModel):
    """Tokens by what they stand for."""

    text_tokens: int
    image_tokens: int


class ImageUsage(BaseModel):
    """Tokens read and drawn."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: TokenDetails


class ImagesReply(BaseModel):
    """Pictures."""

    created: int
    data: list[Drawn]
    output_format: OutputFormat
    size: str
    background: Literal["opaque"] = "opaque"
    usage: ImageUsage
    concepts: list[str]
