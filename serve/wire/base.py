"""What every body shares: the model, the concepts, the error."""

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from omnifarm.errors import RequestError
from serve.errors import MissingError

MODEL = "bagel"
"""Name of the backbone to clients; a concept on it is `bagel:<maeve>`."""
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16, description="The client's own notes: up to 16, names of 64 and texts of 512 characters."),
]
"""OpenAI's bounds of what a client may note on anything."""
CONCEPTS = "Learned concepts, with or without angle brackets. Left out: the model's, else every <name> in the text."

_MODEL = re.compile(rf"{MODEL}(?::<?([A-Za-z0-9][A-Za-z0-9_-]{{0,63}})>?)?")
_NAME = re.compile(r"<?([A-Za-z0-9][A-Za-z0-9_-]{0,63})>?")


class RequestBody(BaseModel):
    """A body in which unknown fields are mistakes, and so are numbers without an end (`1e999`)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ModelBody(RequestBody):
    """A body that is for a model, and about concepts."""

    model: Annotated[str, Field(max_length=80, examples=["bagel", "bagel:<maeve>"])] = MODEL
    concepts: Annotated[list[str] | None, Field(max_length=16, description=CONCEPTS, examples=[["maeve"]])] = None
    user: Annotated[str | None, Field(max_length=256, description="Accepted, without effect.")] = None

    def named_concepts(self) -> list[str] | None:
        """The concepts named outside the text, the model's first; None when there are none.

        Raises:
            MissingError: There is no such model.
        """
        named = concept_of(self.model)
        if named is None:
            return self.concepts
        return [named, *(self.concepts or ())]


class ErrorBody(BaseModel):
    """What went wrong; further facts may stand beside the message."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """Every error has this shape."""

    error: ErrorBody


class ModelEntry(BaseModel):
    """A model: the backbone, or a concept on it."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "omnifarm"


class ModelsReply(BaseModel):
    """Every model the caller can use."""

    object: str = "list"
    data: list[ModelEntry]


def concept_of(model: str) -> str | None:
    """Return the concept that a model's name holds, or None for the bare backbone.

    Raises:
        MissingError: There is no such model.
    """
    match = _MODEL.fullmatch(model)
    if match is None:
        raise MissingError(
            f"expected the model {MODEL!r} or '{MODEL}:<name>', found {model[:80]!r}", field="model", model=model[:80]
        )
    return match.group(1)


def bare_name(text: str, *, field: str) -> str:
    """Return a concept's name without brackets.

    Raises:
        RequestError: It cannot be a concept's name.
    """
    match = _NAME.fullmatch(text)
    if match is None or text.startswith("<") != text.endswith(">"):
        raise RequestError(
            f"expected a concept's name of 1..64 letters, digits, '-' or '_', beginning with a letter or digit, "
            f"found {text[:80]!r}",
            field=field,
        )
    return match.group(1)


def responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of an endpoint's error codes, with those that every endpoint has."""
    return {code: {"model": ErrorReply} for code in sorted({401, 403, 429, 503, *codes})}
