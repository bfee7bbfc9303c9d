"""The JSON that goes over the wire: what each endpoint takes and gives back.

Only shape and plain ranges are checked here; what needs the engine (sizes, unknown concepts) is checked there.
"""

import base64
import io
from typing import Annotated, Literal

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field

from omnifarm.serving.replay import ReplayTrace
from omnifarm.serving.requests import Answer, Picture

_CONCEPTS = "Names of learned concepts, with or without angle brackets; left out, every <name> in the text counts."
_IMAGE = "The picture as base64 (a data: URL is fine); PNG, JPEG or WebP."
_SEED = "Same request, same seed: same picture."


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    concepts: Annotated[list[str] | None, Field(description=_CONCEPTS, examples=[["maeve"]])] = None


class _Sampling(_Body):
    """Steps and guidance under the names that BAGEL uses; what is left out is the backbone's own default."""

    seed: Annotated[int, Field(ge=0, lt=2**63, description=_SEED)] = 0
    num_timesteps: Annotated[int | None, Field(ge=1, description="Values of the denoising schedule.")] = None
    timestep_shift: Annotated[float | None, Field(gt=0)] = None
    cfg_text_scale: Annotated[float | None, Field(ge=0, le=50)] = None
    cfg_img_scale: Annotated[float | None, Field(ge=0, le=50)] = None
    cfg_interval: Annotated[tuple[float, float] | None, Field(description="Guidance is on for low < t <= high.")] = None
    cfg_renorm_type: Literal["global", "channel", "text_channel"] | None = None
    cfg_renorm_min: Annotated[float | None, Field(ge=0, le=1)] = None

    def options(self) -> dict[str, object]:
        """The sampling options that were given."""
        names = set(_Sampling.model_fields) - {"seed", "concepts"}
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


class AskBody(_Body):
    """A question, about a picture or about a concept as such."""

    question: Annotated[str, Field(min_length=1, examples=["Is <maeve> in the photo?"])]
    image: Annotated[str | None, Field(description=_IMAGE)] = None
    max_tokens: Annotated[int, Field(ge=1, le=1000)] = 256
    temperature: Annotated[float | None, Field(gt=0, le=10, description="Left out: the likeliest answer.")] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class GenerateBody(_Sampling):
    """A picture from words."""

    prompt: Annotated[str, Field(min_length=1, examples=["A photo of <maeve> at the beach."])]
    width: Annotated[int | None, Field(gt=0, description="Pixels; left out, the backbone's own.")] = None
    height: Annotated[int | None, Field(gt=0, description="Pixels; left out, the backbone's own.")] = None
    replay: Annotated[
        Literal["unified", "three_stage", "off"],
        Field(description="Ask the concept first what the prompt leaves open."),
    ] = "unified"


class EditBody(_Sampling):
    """A picture from a picture and an instruction."""

    image: Annotated[str, Field(description=_IMAGE)]
    instruction: Annotated[str, Field(min_length=1, examples=["remove <maeve>: dog from the photo"])]
    replay: Literal["unified", "three_stage", "off"] = "off"


class Trace(BaseModel):
    """What replay asked, what the concept answered, what was drawn."""

    status: Literal["used", "no_open_fact", "fallback_parse", "fallback_leak", "off"]
    mode: Literal["unified", "three_stage", "off"]
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


class AskReply(BaseModel):
    """An answer."""

    answer: str
    concepts: list[str]
    num_tokens: int
    timings: dict[str, float]

    @classmethod
    def of(cls, answer: Answer) -> "AskReply":
        """The answer as JSON."""
        return cls(
            answer=answer.text,
            concepts=list(answer.concepts),
            num_tokens=answer.num_tokens,
            timings=dict(answer.timings),
        )


class PngImage(BaseModel):
    """A picture inside JSON."""

    format: Literal["png"] = "png"
    width: int
    height: int
    data: Annotated[str, Field(description="base64")]

    @classmethod
    def of(cls, image: Image) -> "PngImage":
        """The picture as JSON; lossless."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        return cls(width=image.width, height=image.height, data=base64.b64encode(buffer.getvalue()).decode())


class PictureReply(BaseModel):
    """A picture and how it came about."""

    image: PngImage
    prompt: Annotated[str, Field(description="What was drawn in the end.")]
    replay: Annotated[list[Trace], Field(description="One entry for each concept that was consulted.")]
    concepts: list[str]
    seed: int
    num_evaluations: int
    timings: dict[str, float]

    @classmethod
    def of(cls, picture: Picture) -> "PictureReply":
        """The picture as JSON."""
        return cls(
            image=PngImage.of(picture.image),
            prompt=picture.prompt,
            replay=[Trace.of(trace) for trace in picture.replay],
            concepts=list(picture.concepts),
            seed=picture.seed,
            num_evaluations=picture.num_evaluations,
            timings=dict(picture.timings),
        )


class ConceptEntry(BaseModel):
    """A learned concept."""

    name: str
    identifier: str
    class_noun: str
    version: str


class ConceptsReply(BaseModel):
    """Every concept this server can use."""

    concepts: list[ConceptEntry]


class HealthReply(BaseModel):
    """Whether the server can work, and with what."""

    status: Literal["ok"]
    backbone: str
    fingerprint: str
    waiting: int


class ErrorBody(BaseModel):
    """What went wrong; further facts may stand beside the message."""

    model_config = ConfigDict(extra="allow")

    type: str
    message: str


class ErrorReply(BaseModel):
    """Every error has this shape."""

    error: ErrorBody
