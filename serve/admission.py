"""Who may come in now: rates and numbers of requests, decided over plain values.

One replica counts for itself; behind N replicas a tenant may reach N times its rate.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from omnifarm.clock import Clock
from omnifarm.errors import OverloadedError
from omnifarm.tenancy import Caller
from serve.errors import RETRY_AFTER_S, RateLimitError


@dataclass(kw_only=True, slots=True)
class TokenBucket:
    """Fills steadily, is emptied by requests; mutable."""

    rate_per_s: float
    """Tokens added each second."""
    capacity: float
    """Most tokens it holds: how many requests may come at once."""
    tokens: float
    """Tokens in it."""
    updated_s: float
    """When that was."""

    def wait_s(self, now_s: float) -> float:
        """Take a token and return 0, or take none and return the seconds until there is one."""
        self.tokens = min(self.capacity, self.tokens + (now_s - self.updated_s) * self.rate_per_s)
        self.updated_s = now_s
        if self.tokens >= 1.0:
            self.tokens -= 1.0
            return 0.0
        return (1.0 - self.tokens) / self.rate_per_s if self.rate_per_s > 0 else 3600.0

    def charge(self, number: int) -> None:
        """Take `number` tokens, also such as are not there yet: who comes next waits so much longer."""
        self.tokens -= number


@dataclass(kw_only=True, slots=True)
class _Seen:
    bucket: TokenBucket
    held: Counter[str] = field(default_factory=Counter)


@dataclass(kw_only=True, slots=True)
class Admission:
    """The door of one replica; used by its event loop only."""

    clock: Clock
    """Time."""
    max_waiting: int
    """Drawings and answers the replica holds at once."""
    working: int = 0
    """Drawings and answers it holds now."""
    _tenants: dict[str, _Seen] = field(default_factory=dict)

    def check_rate(self, caller: Caller) -> None:
        """Count one request of a tenant.

        Raises:
            RateLimitError: The tenant has used up its rate.
        """
        wait_s = self._seen(caller).bucket.wait_s(self.clock.monotonic_s())
        if wait_s > 0:
            raise RateLimitError(
                f"expected at most {caller.limits.requests_per_minute} requests a minute, found more; try again in "
                f"{max(1, round(wait_s + 0.5))} s",
                retry_after_s=wait_s,
            )

    def charge(self, caller: Caller, number: int) -> None:
        """Count `number` (>= 0) more requests of a tenant, whose request turned out to be as much work."""
        self._seen(caller).bucket.charge(number)

    @contextmanager
    def place(self, caller: Caller) -> Iterator[None]:
        """Hold one of the replica's places while the backbone works for a request.

        Raises:
            RateLimitError: The tenant holds as many as it may.
            OverloadedError: All places are taken.
        """
        with self._held(caller, "requests", fix="try again when one is done"):
            if self.working >= self.max_waiting:
                raise OverloadedError(
                    f"expected fewer than {self.max_waiting} requests under way, found {self.working}; try again in "
                    f"{RETRY_AFTER_S:g} s",
                    retry_after_s=RETRY_AFTER_S,
                )
            self.working += 1
            try:
                yield
            finally:
                self.working -= 1

    def arrival(self, caller: Caller) -> AbstractContextManager[None]:
        """Hold a body that is being read: whoever sends slowly fills its own share of memory and connections, no more.

        Raises:
            RateLimitError: On entering, the tenant sends as many as it may.
        """
        return self._held(caller, "bodies on their way", fix="try again when one has arrived")

    def watch(self, caller: Caller) -> AbstractContextManager[None]:
        """Hold a stream that tells how a job goes; it needs no place of the replica, but looks at the store.

        Raises:
            RateLimitError: On entering, the tenant holds as many as it may.
        """
        return self._held(caller, "streams of jobs", fix="close one first")

    @contextmanager
    def _held(self, caller: Caller, what: str, *, fix: str) -> Iterator[None]:
        seen, most = self._seen(caller), caller.limits.max_concurrent
        if seen.held[what] >= most:
            raise RateLimitError(
                f"expected at most {most} {what} at the same time, found more; {fix}", retry_after_s=RETRY_AFTER_S
            )
        seen.held[what] += 1
        try:
            yield
        finally:
            seen.held[what] -= 1

    def _seen(self, caller: Caller) -> _Seen:
        limits = caller.limits
        rate_per_s = limits.requests_per_minute / 60.0
        capacity = max(1.0, limits.requests_per_minute / 10.0)
        seen = self._tenants.get(caller.tenant)
        if seen is None:
            bucket = TokenBucket(
                rate_per_s=rate_per_s, capacity=capacity, tokens=capacity, updated_s=self.clock.monotonic_s()
            )
            seen = self._tenants[caller.tenant] = _Seen(bucket=bucket)
        # Limits may have been changed since.
        seen.bucket.rate_per_s, seen.bucket.capacity = rate_per_s, capacity
        return seen
