"""The trainer: finds what tenants asked to be learned and runs the farm's worker on it, in this process.

One turn is a minute for one tenant's jobs of one recipe; the tenant whose last turn is longest ago comes next, so
nobody's many jobs hold up somebody's first, and what a turn leaves unfinished goes on from its checkpoint. The list of
work is a hint: what a job needs is what its record says, and
a trainer that dies leaves leases that run out. Knows no Ray and no HTTP.
"""

import logging
import secrets
from dataclasses import dataclass, replace

from omnifarm.clock import Clock
from omnifarm.concept.recipe import Precision
from omnifarm.errors import NotFoundError, OmniFarmError
from omnifarm.farm.job import JobState, UnreadableRecordError
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.logs import event
from omnifarm.store.base import Store
from omnifarm.training.workbench import Workbench
from serve.errors import MissingError
from serve.spaces import Space, Spaces
from serve.tuning import OWNER, PENDING, Job

_LOG = logging.getLogger("omnifarm.serve")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What a trainer does next."""

    tenant: str
    """Whose jobs; empty for the owner."""
    jobs: tuple[Job, ...]
    """Jobs of one recipe."""


class ConceptTrainer:
    """Trains what is asked for, turn by turn.

    Args:
        spaces: The tenants' stores.
        root: The root store, with the list of work.
        backbone: Name or folder of what is learned on.
        lanes: Jobs trained side by side.
        device: Where the backbone runs.
        clock: Time.
        checkpoint_s: Seconds between checkpoints.
        turn_s: Seconds of a turn; it ends earlier when nothing is left to do.
    """

    def __init__(
        self,
        spaces: Spaces,
        *,
        root: Store,
        backbone: str,
        lanes: int,
        device: str,
        clock: Clock,
        checkpoint_s: float,
        turn_s: float = 60.0,
    ) -> None:
        self._spaces = spaces
        self._root = root
        self._backbone = backbone
        self._settings = WorkerSettings(lanes=lanes, heartbeat_s=1.0, checkpoint_s=checkpoint_s, poll_s=0.5)
        self._turn_s = turn_s
        self._device = device
        self._clock = clock
        self._worker_id = f"trainer-{secrets.token_hex(4)}"
        self._benches: dict[Precision, Workbench] = {}
        self._last_turn: dict[str, float] = {}

    def run_forever(self, *, poll_s: float = 1.0) -> None:
        """Take turns until the process ends; a turn that fails is logged, and its jobs are tried again."""
        while True:
            try:
                turn = self.next_turn()
                if turn is None:
                    self._clock.sleep_s(poll_s)
                else:
                    self.take(turn)
            except OmniFarmError as error:
                event(_LOG, "turn_failed", level=logging.ERROR, error=str(error))
                self._clock.sleep_s(poll_s)

    def next_turn(self) -> Turn | None:
        """Return what to do next, or None; strikes from the list of work what is finished."""
        waiting: dict[str, list[str]] = {}
        for key in self._root.list(PENDING):
            tenant, _, job_id = key.removeprefix(PENDING).partition("/")
            waiting.setdefault("" if tenant == OWNER else tenant, []).append(job_id)
        for tenant in sorted(waiting, key=lambda one: (self._last_turn.get(one, 0.0), one)):
            space = self._spaces.of(tenant)
            jobs = [job for job_id in waiting[tenant] if (job := self._workable(space, job_id)) is not None]
            if jobs:
                jobs.sort(key=lambda job: (job.record.created_at_s, job.request.job_id))
                recipe = jobs[0].request.recipe
                same = [job for job in jobs if job.request.recipe == recipe]
                return Turn(tenant=tenant, jobs=tuple(same))
        return None

    def take(self, turn: Turn) -> None:
        """Train the jobs of a turn until each is committed, failed or cancelled, or the turn is over."""
        self._last_turn[turn.tenant] = self._clock.monotonic_s()
        space = self._spaces.of(turn.tenant)
        recipe = space.tuning.recipe(turn.jobs[0])
        event(_LOG, "turn_started", tenant=turn.tenant, jobs=len(turn.jobs), steps=recipe.steps)
        worker = Worker(
            self._worker_id,
            store=space.store,
            workbench=self._bench(recipe.precision),
            recipe=recipe,
            settings=replace(self._settings, stop_at_s=self._clock.now_s() + self._turn_s),
            clock=self._clock,
        )
        worker.run()
        for job in turn.jobs:
            self._settle(space, job)

    def _workable(self, space: Space, job_id: str) -> Job | None:
        try:
            job = space.tuning.get(f"ftjob-{job_id}")
        except MissingError:
            space.tuning.strike(job_id)
            return None
        if job.is_over:
            space.tuning.strike(job_id)
        is_due = job.record.not_before_s <= self._clock.now_s()
        return job if is_due and not job.status.is_final else None

    def _settle(self, space: Space, job: Job) -> None:
        """Strike a job that is over; withdraw what was committed in the moment of its cancellation."""
        try:
            state = space.queue.get(job.request.job_id).state
        except UnreadableRecordError:
            return  # it may have been cancelled or not; the others have their turns, and it has when a person has mended it
        except NotFoundError:
            state = JobState.CANCELLED
        if state is JobState.CANCELLED:
            space.repository.delete(job.request.name, version=job.request.job_id)
        if state.is_finished:
            space.tuning.strike(job.request.job_id)

    def _bench(self, precision: Precision) -> Workbench:
        if precision not in self._benches:
            self._benches[precision] = Workbench.open(self._backbone, precision=precision, device=self._device)
        return self._benches[precision]
