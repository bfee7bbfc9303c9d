"""What a request tells while it runs, and the ticket by which its owner follows or cancels it."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL.Image import Image

from omnifarm.errors import OmniFarmError, ServingError
from omnifarm.serving.requests import Answer, Picture

_LOG = logging.getLogger("omnifarm.serving")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPiece:
    """A piece of an answer; the pieces joined are the answer's text."""

    text: str
    """At least one character."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtPiece:
    """A piece of what is thought before an answer or a drawing; the pieces joined are the result's thought."""

    text: str
    """At least one character."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PartialImage:
    """What a picture will about look like: decoded from the clean latents the current step points to."""

    index: int
    """Counts from 0."""
    step: int
    """Finished steps."""
    num_steps: int
    """Steps of the whole drawing."""
    image: Image = field(repr=False)
    """RGB, of the final size."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The request is done."""

    result: Answer | Picture
    """What came of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failed:
    """The request cannot be answered."""

    error: OmniFarmError
    """Why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cancelled:
    """The request was cancelled by its owner."""


Event = TextPiece | ThoughtPiece | PartialImage | Finished | Failed | Cancelled
"""Exactly one of the last three ends a request."""

Listener = Callable[[Event], None]
"""Called in the thread that steps the engine: hand the event over and return."""


class Ticket:
    """One submitted request, for its owner. Safe to use from any thread.

    Args:
        listener: Told every event.
        cancel: Takes the request out of the engine.
    """

    def __init__(self, listener: Listener | None, *, cancel: Callable[[], None]) -> None:
        self._listener = listener
        self._cancel = cancel
        self._ended = threading.Event()
        self._last: Finished | Failed | Cancelled | None = None

    @property
    def is_done(self) -> bool:
        """Whether the request has ended, in whatever way."""
        return self._ended.is_set()

    def cancel(self) -> None:
        """Ask that the request be gone from the next step; safe to repeat, does nothing once it has ended."""
        self._cancel()

    def tell(self, event: Event) -> None:
        """Pass an event on; called by the engine."""
        if isinstance(event, Finished | Failed | Cancelled):
            self._last = event
        try:
            if self._listener is not None:
                self._listener(event)
        except Exception:  # noqa: BLE001 - a listener's mistake must not stop the engine
            _LOG.exception("listener_failed")
        if self._last is not None:
            self._ended.set()

    def result(self, timeout_s: float | None = None) -> Answer | Picture:
        """Wait for the request's end and return what came of it.

        Args:
            timeout_s: Longest wait; None waits for ever.

        Raises:
            OmniFarmError: The request failed.
            ServingError: It was cancelled, or is not done in time (it goes on then).
        """
        if not self._ended.wait(timeout_s):
            raise ServingError(f"expected a result within {timeout_s} s, found the request still running; wait longer")
        if isinstance(self._last, Finished):
            return self._last.result
        if isinstance(self._last, Failed):
            raise self._last.error
        raise ServingError("the request was cancelled")
