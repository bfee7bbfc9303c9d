"""One question to one model behind an OpenAI-compatible endpoint, asked once ever.

Every question is a conversation of its own at temperature 0. Replies are kept in the store under (model, endpoint,
words, pictures), so a second scoring asks nothing. Trouble on the way is tried again a few times and then counted;
a refusal is a reply and is kept. No grade is ever invented.
"""

import base64
import hashlib
import io
import json
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from omnifarm.concept.images import pixel_digest
from omnifarm.errors import ConfigError, NotFoundError
from omnifarm.store.base import Store

PREFIX = "benchmark/judgements"
"""Keys of all kept replies begin with this."""

_JPEG_QUALITY = 95


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatSettings:
    """Which model, where, and at what pace."""

    model: str
    """Pinned model id, such as gpt-4o-2024-11-20."""
    base_url: str = "https://api.openai.com/v1"
    """Of any OpenAI-compatible server."""
    timeout_s: float = 60.0
    """Seconds one try may take."""
    max_retries: int = 4
    """Tries after the first, on timeouts, broken connections, 429 and 5xx, with growing pauses."""
    concurrency: int = 4
    """Questions under way at once."""
    price_in: float = 0.0
    """Money per million tokens read, for the report."""
    price_out: float = 0.0
    """Money per million tokens written."""

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ConfigError("a judge needs a model id, found none; pin one such as gpt-4o-2024-11-20")
        if urlsplit(self.base_url).scheme not in ("http", "https"):
            raise ConfigError(f"a judge's endpoint is http(s)://host/v1, found {self.base_url!r}")
        if self.timeout_s <= 0 or self.max_retries < 0 or self.concurrency < 1:
            raise ConfigError(
                "a judge needs timeout_s above 0, max_retries of at least 0 and concurrency of at least 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatReply:
    """What came back."""

    text: str = ""
    """The words."""
    failure: str = ""
    """`refused` or `unavailable: ...`; empty when there are words."""
    tokens_in: int = 0
    """Tokens read."""
    tokens_out: int = 0
    """Tokens written."""
    served_by: str = ""
    """Model id as the server gives it."""


class ChatEndpoint:
    """Asks a model and remembers. Safe to use from several threads.

    Args:
        settings: Which model.
        api_key: Kept out of everything that is stored.
        store: Where replies are kept.
    """

    def __init__(self, settings: ChatSettings, *, api_key: str, store: Store) -> None:
        # Imported here: scoring without an endpoint does without the package.
        try:
            from openai import OpenAI
        except ModuleNotFoundError as error:
            raise ConfigError(
                "a judge behind an endpoint needs the package openai: pip install 'omnifarm[bench]'"
            ) from error
        self.settings = settings
        self._store = store
        self._client = OpenAI(
            api_key=api_key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout_s,
            max_retries=settings.max_retries,
        )
        self._slots = threading.Semaphore(settings.concurrency)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._served_by: set[str] = set()

    @property
    def id(self) -> str:
        """Model and host."""
        return f"{self.settings.model}@{urlsplit(self.settings.base_url).netloc}"

    def ask(
        self, parts: Sequence[str | Image.Image], *, system: str = "", max_tokens: int = 300, attempt: int = 0
    ) -> ChatReply:
        """Ask one question in a conversation of its own.

        Args:
            parts: Words and pictures, in order.
            system: What the model is told first.
            max_tokens: Longest reply.
            attempt: Another number asks again where a reply to the same question is kept.

        Returns:
            The reply; trouble is in `failure`, nothing is raised for it.
        """
        key = self._key(parts, system, max_tokens, attempt)
        reply = self._kept(key)
        is_fresh = reply is None
        if reply is None:
            with self._slots:
                reply = self._send(parts, system, max_tokens)
            # Trouble passes; words and refusals at temperature 0 stay what they are.
            if not reply.failure.startswith("unavailable"):
                self._store.put(key, json.dumps(asdict(reply), ensure_ascii=False).encode())
        with self._lock:
            self._counts["fresh" if is_fresh else "kept"] += 1
            self._counts["tokens_in"] += reply.tokens_in
            self._counts["tokens_out"] += reply.tokens_out
            if reply.failure:
                self._counts[reply.failure.partition(":")[0]] += 1
            if reply.served_by:
                self._served_by.add(reply.served_by)
        return reply

    def report(self) -> dict[str, Any]:
        """Return calls (fresh and kept), tokens and cost behind all replies so far, and failures."""
        settings, counts = self.settings, self._counts
        cost = (counts["tokens_in"] * settings.price_in + counts["tokens_out"] * settings.price_out) / 1e6
        return {
            "judge": self.id,
            "served_by": sorted(self._served_by),
            **dict(sorted(counts.items())),
            "cost": round(cost, 4),
        }

    def _send(self, parts: Sequence[str | Image.Image], system: str, max_tokens: int) -> ChatReply:
        import openai

        content = [{"type": "text", "text": part} if isinstance(part, str) else _as_url(part) for part in parts]
        messages: list[Any] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        try:
            got = self._client.chat.completions.create(
                model=self.settings.model, messages=messages, temperature=0, max_tokens=max_tokens
            )
        except openai.BadRequestError as error:
            # Content filters in front of a model answer 400.
            is_filtered = "filter" in str(error).lower() or "policy" in str(error).lower()
            return ChatReply(failure="refused" if is_filtered else f"unavailable: {_short(error)}")
        except (openai.OpenAIError, ValueError) as error:
            # ValueError: the body was no JSON.
            return ChatReply(failure=f"unavailable: {_short(error)}")
        # The client checks no types: a server's reply may hold anything at all.
        choices = getattr(got, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        message, usage = getattr(choice, "message", None), getattr(got, "usage", None)
        text = getattr(message, "content", None) or ""
        if message is None or not isinstance(text, str):
            return ChatReply(failure="unavailable: the reply holds no message")
        is_refused = bool(getattr(message, "refusal", None)) or getattr(choice, "finish_reason", "") == "content_filter"
        return ChatReply(
            text="" if is_refused else text,
            failure="refused" if is_refused else "" if text else "unavailable: the reply is empty",
            tokens_in=_count(usage, "prompt_tokens"),
            tokens_out=_count(usage, "completion_tokens"),
            served_by=str(getattr(got, "model", None) or ""),
        )

    def _kept(self, key: str) -> ChatReply | None:
        try:
            return ChatReply(**json.loads(self._store.get(key).data))
        except NotFoundError:
            return None

    def _key(self, parts: Sequence[str | Image.Image], system: str, max_tokens: int, attempt: int) -> str:
        words = json.dumps([system, max_tokens, attempt, *(part for part in parts if isinstance(part, str))])
        pictures = [pixel_digest(part) for part in parts if not isinstance(part, str)]
        digest = hashlib.sha256(json.dumps([self.id, self.settings.base_url, words, pictures]).encode()).hexdigest()
        return f"{PREFIX}/{re.sub(r'[^A-Za-z0-9._@-]+', '-', self.id)}/{digest}.json"


def _count(usage: object, name: str) -> int:
    value = getattr(usage, name, None)
    return value if isinstance(value, int) and value >= 0 else 0


def _as_url(picture: Image.Image) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
