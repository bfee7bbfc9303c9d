"""Requests under way: let in, planned, run, resumed - one step at a time.

    submit -> waiting -> [admitted] script yields works -> tasks -> chosen by the scheduler -> one pass -> results
                                        ^------------------------------------------------------------------'

Knows scripts and tasks, not what they are for. `submit` and `cancel` may be called from any thread; steps are taken
by one thread at a time.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from omnifarm.backbone.kv_pool import KvPool, PooledContext
from omnifarm.errors import OmniFarmError, OverloadedError, RequestError, ServingError
from omnifarm.serving.prefixes import PrefixCache
from omnifarm.serving.runner import Outcome, Runner, Task, kind_of
from omnifarm.serving.scheduler import Budget, Candidate, Claim, Kind, admit, choose
from omnifarm.serving.tasks import DrawTask, ReadTask, WriteTask
from omnifarm.serving.work import Read, Script, Work

_LOG = logging.getLogger("omnifarm.serving")
_RETRY_AFTER_S = 2
_CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError."""


@dataclass(kw_only=True, eq=False)
class Entry:
    """One request under way."""

    number: int
    script: Script[Any]
    rows: int
    """Reserved rows of the pool."""
    tenant: str
    on_start: Callable[[], None]
    on_end: Callable[[Any, OmniFarmError | None], None]
    """Told the result, or the error; both None when cancelled."""
    labels: tuple[str, ...] = ()
    """Go with every prefix it leaves in the cache."""
    overtakes: int = 0
    """How often it was overtaken while it waited; see `scheduler.Claim`."""
    is_cancelled: bool = False
    results: list[Any] = field(default_factory=list)
    missing: int = 0
    """Results still to come before the script goes on."""


@dataclass(kw_only=True, eq=False)
class _Running:
    """A task and who waits for it."""

    entry: Entry
    slot: int | None
    """Which of the entry's results it makes; None when nobody waits for it."""
    task: Task
    last_served: int
    is_towards_text: bool
    key: bytes | None


class Loop:
    """Steps requests.

    Args:
        runner: Runs the model.
        pool: For counting rows.
        prefixes: Contexts kept between requests.
        budget: What a step may cost.
        soft_table: The residents' table as it is now.
        max_waiting: Requests that may wait to be let in.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        pool: KvPool,
        prefixes: PrefixCache,
        budget: Budget,
        soft_table: Callable[[], Tensor | None],
        max_waiting: int,
    ) -> None:
        self._runner, self._pool, self._prefixes, self._budget = runner, pool, prefixes, budget
        self._soft_table = soft_table
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: list[Entry] = []
        self._running: dict[int, Entry] = {}
        self._tasks: dict[int, _Running] = {}
        self._followers: dict[bytes, list[tuple[Entry, int, Work]]] = {}
        self._numbers = 0
        self._steps = 0
        self._tokens: Counter[str] = Counter({"read": 0, "write": 0, "draw": 0})

    @property
    def num_steps(self) -> int:
        """Steps in which something ran."""
        return self._steps

    @property
    def num_running(self) -> int:
        """Requests under way."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests not let in yet."""
        return len(self._waiting)

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._running and not self._waiting

    def submit(self, entry: Entry) -> None:
        """Put a request in the line.

        Raises:
            RequestError: It needs more memory than there is.
            OverloadedError: The line is full.
        """
        if entry.rows > self._pool.capacity:
            raise RequestError(
                f"expected a request of at most {self._pool.capacity} cached tokens, found one that may need "
                f"{entry.rows}; ask for a smaller picture, fewer pictures or a shorter text",
                limit=self._pool.capacity,
            )
        with self._lock:
            if len(self._waiting) >= self._max_waiting:
                raise OverloadedError(
                    f"expected fewer than {self._max_waiting} waiting requests, found {len(self._waiting)}; try again "
                    f"in {_RETRY_AFTER_S} s",
                    waiting=len(self._waiting),
                    retry_after_s=_RETRY_AFTER_S,
                )
            self._waiting.append(entry)

    def cancel(self, entry: Entry) -> None:
        """Have a request removed before the next step; nothing happens when it has ended."""
        entry.is_cancelled = True

    def step(self) -> bool:
        """Let in, plan, run, resume; return whether anything is left to do."""
        self._remove_cancelled()
        self._admit()
        grants = choose([self._candidate(number, one) for number, one in self._tasks.items()], budget=self._budget)
        granted = {grant.task: (self._tasks[grant.task].task, grant.num_pieces) for grant in grants}
        if granted:
            self._count(granted)
            for number, outcome in self._run(granted).items():
                if number in self._tasks:
                    self._settle(number, outcome)
        return not self.is_idle

    def statistics(self) -> dict[str, Any]:
        """Return counters and gauges."""
        return {
            "running": self.num_running,
            "waiting": self.num_waiting,
            "steps": self._steps,
            "step_tokens": dict(self._tokens),
            "prefix_hits": self._prefixes.num_hits,
            "prefix_misses": self._prefixes.num_misses,
            "rows_used": self._pool.num_used,
            "rows_total": self._pool.capacity,
        }

    def _run(self, granted: dict[int, tuple[Task, int]]) -> dict[int, Outcome]:
        """Run a pass; when it fails, run its tasks one by one, so that only the guilty one fails."""
        try:
            return self._runner.run(granted)
        except Exception as error:  # noqa: BLE001 - such as memory running out: the server goes on
            failed = error
        _LOG.warning("pass_failed", exc_info=failed, extra={"fields": {"tasks": len(granted)}})
        # Its frames hold the tensors of the pass: without them there is room for the next.
        failed = failed.with_traceback(None)
        if len(granted) == 1:
            return dict.fromkeys(granted, Outcome(error=failed))
        outcomes: dict[int, Outcome] = {}
        for number, one in granted.items():
            outcomes |= self._run({number: one})
        return outcomes

    def _remove_cancelled(self) -> None:
        with self._lock:
            gone = [entry for entry in self._waiting if entry.is_cancelled]
            self._waiting = [entry for entry in self._waiting if not entry.is_cancelled]
        gone += [entry for entry in self._running.values() if entry.is_cancelled]
        for entry in gone:
            self._end(entry, None, None)

    def _admit(self) -> None:
        with self._lock:
            claims = [
                Claim(request=one.number, rows=one.rows, tenant=one.tenant, overtakes=one.overtakes)
                for one in self._waiting
            ]
            by_number = {one.number: one for one in self._waiting}
            decided = admit(
                claims,
                running=Counter(one.tenant for one in self._running.values()),
                free_rows=self._pool.capacity - sum(one.rows for one in self._running.values()),
                budget=self._budget,
            )
            for claim in decided.waiting:
                by_number[claim.request].overtakes = claim.overtakes
            self._waiting = [by_number[claim.request] for claim in decided.waiting]
            for number in decided.admitted:
                self._running[number] = by_number[number]
        for number in decided.admitted:
            by_number[number].on_start()
            self._resume(by_number[number], None)

    def _resume(self, entry: Entry, results: list[Any] | None) -> None:
        """Let a script go on until it waits for the model or ends."""
        while True:
            try:
                works = entry.script.send(results)  # type: ignore[arg-type]
                entry.results, entry.missing = [None] * len(works), len(works)
                for slot, work in enumerate(works):
                    self._start(entry, slot, work)
            except StopIteration as done:
                self._end(entry, done.value, None)
                return
            except Exception as error:  # noqa: BLE001 - one request's failure must not end the others
                self._fail(entry, error)
                return
            if entry.missing:
                return
            results = entry.results

    def _start(self, entry: Entry, slot: int, work: Work) -> None:
        key = work.key if isinstance(work, Read) else None
        if key is not None:
            known = self._prefixes.get(key)
            if known is None and key in self._followers:
                # Somebody is reading the very same: wait for it instead of reading it twice.
                self._followers[key].append((entry, slot, work))
                return
            if known is not None:
                self._continue(entry, slot, work, known)
                return
        task = self._runner.start(work, soft_table=self._soft_table())
        if key is not None:
            # Only now: nobody may wait for a reading that could not begin.
            self._followers[key] = []
        self._add(entry, slot, work, task, key=key)

    def _continue(self, entry: Entry, slot: int, work: Work, known: PooledContext) -> None:
        """Read what comes behind a beginning that was read before, if anything does."""
        if isinstance(work, Read) and work.num_shared is None:
            self._fill(entry, slot, known)
            return
        self._add(entry, slot, work, self._runner.start(work, soft_table=self._soft_table(), known=known))

    def _add(self, entry: Entry, slot: int | None, work: Work, task: Task, *, key: bytes | None = None) -> None:
        if isinstance(task, DrawTask) and task.is_done and slot is not None:
            self._fill(entry, slot, task.result())
            return
        self._numbers += 1
        self._tasks[self._numbers] = _Running(
            entry=entry,
            slot=slot,
            task=task,
            last_served=self._steps,
            is_towards_text=isinstance(work, Read) and work.is_towards_text,
            key=key,
        )

    def _settle(self, number: int, outcome: Outcome) -> None:
        running = self._tasks[number]
        entry = running.entry
        running.last_served = self._steps
        if outcome.error is not None:
            self._fail(entry, outcome.error)
            return
        for aside in outcome.asides:
            self._add(entry, None, aside, self._runner.start(aside, soft_table=None))
        if not outcome.is_done:
            return
        del self._tasks[number]
        woken = {entry.number: entry}
        if running.key is not None and outcome.prefix is not None:
            self._prefixes.put(running.key, outcome.prefix, labels=entry.labels)
            for follower, slot, work in self._followers.pop(running.key, []):
                if follower.number in self._running:
                    try:
                        self._continue(follower, slot, work, outcome.prefix)
                    except Exception as error:  # noqa: BLE001 - as in _resume
                        self._fail(follower, error)
                    woken[follower.number] = follower
        if running.slot is not None:
            self._fill(entry, running.slot, outcome.value)
        for one in woken.values():
            if not one.missing and one.number in self._running and one.results:
                self._resume(one, one.results)

    def _fill(self, entry: Entry, slot: int, value: Any) -> None:
        entry.results[slot] = value
        entry.missing -= 1

    def _fail(self, entry: Entry, error: Exception) -> None:
        if not isinstance(error, OmniFarmError):
            _LOG.error("request_failed", exc_info=error)
        # Its frames hold the request's rows, and whoever asked may hold the error for long.
        self._end(entry, None, _told(error.with_traceback(None)))

    def _end(self, entry: Entry, result: Any, error: OmniFarmError | None) -> None:
        self._running.pop(entry.number, None)
        entry.script.close()
        for number in [number for number, one in self._tasks.items() if one.entry is entry]:
            self._abandon(self._tasks.pop(number))
        entry.results = []
        entry.on_end(result, error)

    def _abandon(self, running: _Running) -> None:
        """Have those who waited for the same beginning read it themselves."""
        if running.key is None:
            return
        for entry, slot, work in self._followers.pop(running.key, []):
            if entry.number in self._running:
                try:
                    self._start(entry, slot, work)
                except Exception as error:  # noqa: BLE001 - as in _resume
                    self._fail(entry, error)

    def _candidate(self, number: int, running: _Running) -> Candidate:
        task = running.task
        return Candidate(
            task=number,
            kind=kind_of(task),
            pieces=task.pieces if isinstance(task, ReadTask | WriteTask | DrawTask) else (0,),
            last_served=running.last_served,
            is_towards_text=running.is_towards_text,
        )

    def _count(self, granted: dict[int, tuple[Task, int]]) -> None:
        self._steps += 1
        for task, count in granted.values():
            if isinstance(task, ReadTask | WriteTask | DrawTask):
                self._tokens[Kind(kind_of(task)).name.lower()] += sum(task.pieces[:count])


def _told(error: Exception) -> OmniFarmError:
    """Return what the request's owner is told."""
    if isinstance(error, OmniFarmError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_IS_FULL in str(error):
        return OverloadedError(
            f"expected memory for this request's next step, found none left ({type(error).__name__}); try again in "
            f"{_RETRY_AFTER_S} s, or ask for a smaller picture",
            retry_after_s=_RETRY_AFTER_S,
        )
    return ServingError(f"the request failed inside the server ({type(error).__name__}); the log says why")
