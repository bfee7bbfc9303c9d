"""A thread that steps an engine, so that any number of threads and coroutines can follow their requests."""

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator

from omnifarm.errors import ServingError
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Cancelled, Event, Failed, Finished, Listener, Ticket
from omnifarm.serving.requests import Request, Result

_LOG = logging.getLogger("omnifarm.serving")
_IDLE_S = 0.5
"""Longest sleep without work, against a wake-up that got lost."""


class EngineWorker:
    """Steps an engine in a thread of its own, from now until `close`.

    Args:
        engine: Nobody else needs to step it.
        stall_s: Longest time without a finished step, while there is work, that `check` takes for health: more than
            the longest step.
    """

    def __init__(self, engine: Engine, *, stall_s: float = 300.0) -> None:
        self.engine = engine
        self._stall_s = stall_s
        self._wake = threading.Event()
        self._is_closed = False
        self._open: set[Ticket] = set()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def check(self) -> None:
        """Do nothing, unless the engine can answer nobody any more.

        Raises:
            ServingError: Its thread has ended, or there is work and no step has ended for `stall_s`.
        """
        if not self.is_alive:
            raise ServingError("expected a running engine, found one that has ended")
        stalled_s = self.engine.stalled_s
        if stalled_s > self._stall_s:
            raise ServingError(
                f"expected an engine with work to finish a step within {self._stall_s:.0f} s, found none for "
                f"{stalled_s:.0f} s; allow longer steps if the device needs them",
                stalled_s=stalled_s,
            )

    def submit(self, request: Request, listener: Listener | None = None) -> Ticket:
        """Put a request in the line; see `Engine.submit`. Listeners are called in the engine's thread.

        Raises:
            ServingError: The worker was closed.
        """
        if self._is_closed:
            raise ServingError("the engine was closed and takes no more requests")
        ticket = self.engine.submit(request, listener)
        self._open = {one for one in self._open if not one.is_done} | {ticket}
        self._wake.set()
        return ticket

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        """Yield the request's events, the last one included; leaving early cancels the request.

        Raises:
            OmniFarmError: The request was refused; see `Engine.submit`.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def hand_over(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        # Submitting may read concepts from the store: not in the thread that serves everybody.
        submitting = asyncio.ensure_future(asyncio.to_thread(self.submit, request, hand_over))
        try:
            ticket = await asyncio.shield(submitting)
        except asyncio.CancelledError:
            # The thread submits all the same; nobody waits for that request any more.
            submitting.add_done_callback(_cancel_ticket)
            raise
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Finished | Failed | Cancelled):
                    return
        finally:
            ticket.cancel()

    async def run(self, request: Request) -> Result:
        """Return the request's result; cancelling the caller cancels the request.

        Raises:
            OmniFarmError: The request was refused, or failed.
        """
        async for event in self.stream(request):
            if isinstance(event, Finished):
                return event.result
            if isinstance(event, Failed):
                raise event.error
        raise ServingError("the request was cancelled")

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Cancel what is open and end the thread; safe to repeat.

        Args:
            timeout_s: Longest wait for the step that is running.
        """
        for ticket in list(self._open):
            ticket.cancel()
        self._is_closed = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            try:
                has_work = self.engine.step()
            except Exception:  # noqa: BLE001 - the thread must live: requests of later steps may be sound
                _LOG.exception("engine_step_failed")
                # Not at once: what fails every time would fill the log. `check` tells when it lasts.
                has_work = False
            if has_work:
                continue
            if self._is_closed:
                return
            self._wake.wait(_IDLE_S)
            self._wake.clear()


def _cancel_ticket(submitting: "asyncio.Future[Ticket]") -> None:
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()
