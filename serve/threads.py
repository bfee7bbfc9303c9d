"""Work in a thread that is waited for, also when whoever asked has left."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

Result = TypeVar("Result")


async def to_the_end(work: Callable[[], Result], *, limiter: anyio.CapacityLimiter | None = None) -> Result:
    """Run `work` in a thread; a cancellation is passed on when it is done.

    A thread cannot be stopped. Whoever gave up on it would undo what is not done yet, or take it for memory that is free.

    Args:
        work: What to do; its errors come through.
        limiter: How many may do so at the same time.
    """
    running = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=limiter))
    left: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            left = error
    if left is not None:
        # Looked at, or asyncio reports it as forgotten.
        running.exception()
        raise left
    return running.result()
