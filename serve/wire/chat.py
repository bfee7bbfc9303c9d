"""`/v1/chat/completions`: questions about pictures and concepts."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from omnifarm.errors import RequestError
from omnifarm.serving.requests import Answer
from serve.wire.base import Metadata, ModelBody, RequestBody

Role = Literal["system", "developer", "user", "assistant"]


class TextPart(RequestBody):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(RequestBody):
    """Where a picture is."""

    url: Annotated[str, Field(description="A data: URL; https only for hosts the operator named.")]
    detail: Annotated[Literal["auto", "low", "high"], Field(description="Accepted, without effect.")] = "auto"


class ImagePart(RequestBody):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


class Message(RequestBody):
    """One turn."""

    role: Role
    content: (
        str | Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(max_length=64)] | None
    ) = None
    name: Annotated[str | None, Field(max_length=64)] = None
    # A reply's message may be sent back as it is, with everything its type has. Thoughts are not read again.
    refusal: Annotated[str | None, Field(description="Accepted, without effect.")] = None
    reasoning_content: Annotated[str | None, Field(description="Accepted, without effect.")] = None
    annotations: Annotated[list[None], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[None], Field(max_length=0)] | None = None

    def text(self) -> str:
        """Its words."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or () if isinstance(part, TextPart))

    def image_urls(self) -> list[str]:
        """Its pictures."""
        if isinstance(self.content, str):
            return []
        return [part.image_url.url for part in self.content or () if isinstance(part, ImagePart)]


class StreamOptions(RequestBody):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class TextFormat(RequestBody):
    """Answers are plain text."""

    type: Literal["text"] = "text"


class ChatBody(ModelBody):
    """A conversation that ends with a user's question."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=64)]
    max_tokens: Annotated[int | None, Field(ge=1, le=1000)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=1000)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, description="0 or left out: the likeliest answer.")] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    think: Annotated[bool, Field(description="Let the model think before it answers.")] = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    # What OpenAI's clients may send and this server has one value for.
    n: Literal[1] | None = None
    stop: Annotated[list[None], Field(max_length=0)] | None = None
    top_p: Literal[1] | None = None
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    logprobs: Literal[False] | None = None
    store: Literal[False] | None = None
    response_format: TextFormat | None = None
    metadata: Metadata | None = None

    def question(self) -> str:
        """What the model is asked: the last turn, after the earlier ones if there are any.

        The model was taught single questions, so a conversation is put before the last of them in words.

        Raises:
            RequestError: The last turn is not the user's.
        """
        *earlier, last = self.messages
        if last.role != "user":
            raise RequestError(f"expected the last message from the user, found one of {last.role!r}", field="messages")
        if not earlier:
            return last.text()
        labels = {"user": "User: ", "assistant": "Assistant: "}
        turns = [labels.get(turn.role, "") + turn.text() for turn in earlier if turn.text().strip()]
        return "\n".join([*turns, (labels["user"] if len(turns) else "") + last.text()])

    def image_urls(self) -> list[str]:
        """Every picture of the conversation, in order."""
        return [url for message in self.messages for url in message.image_urls()]


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    reasoning_content: Annotated[str | None, Field(description="What it thought, with `think`.")] = None


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Usage(BaseModel):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, answer: Answer) -> "Usage":
        """The usage of an answer."""
        read, written = answer.num_prompt_tokens, answer.num_tokens
        return cls(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


class ChatReply(BaseModel):
    """An answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    concepts: Annotated[list[str], Field(description="Concepts that were in context.")]
    timings: Annotated[dict[str, float], Field(description="Seconds by phase.")]

    @classmethod
    def of(cls, answer: Answer, *, reply_id: str, created: int, model: str) -> "ChatReply":
        """The answer as JSON."""
        message = AnswerMessage(content=answer.text, reasoning_content=answer.thought or None)
        return cls(
            id=reply_id,
            created=created,
            model=model,
            choices=[Choice(message=message, finish_reason=finish_reason(answer))],
            usage=Usage.of(answer),
            concepts=list(answer.concepts),
            timings=dict(answer.timings),
        )


def finish_reason(answer: Answer) -> Literal["stop", "length"]:
    """Why an answer ends."""
    return "stop" if answer.is_complete else "length"


def chunk(
    *,
    reply_id: str,
    created: int,
    model: str,
    delta: dict[str, Any] | None,
    finish_reason: str | None = None,
    usage: Usage | None = None,
    with_usage: bool = False,
) -> dict[str, Any]:
    """One `chat.completion.chunk`; without a delta it has no choices and carries the usage."""
    choices = []
    if delta is not None:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}]
    values: dict[str, Any] = {
        "id": reply_id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
    }
    if with_usage:
        values["usage"] = None if usage is None else usage.model_dump()
    return values
