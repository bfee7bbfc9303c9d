"""What a worker does: lease concepts, train them as lanes, keep the leases, commit what is finished.

    lease -> lane (fresh, or from its checkpoint) -> steps, heartbeats, checkpoints -> artifact -> committed

A worker may die between any two lines. What it had leased is leased by somebody else when the lease has run out, and
goes on from the last checkpoint to the same result, because a lane depends on nothing but its identity and its step.
A worker that was only slow finds its lease gone at the next heartbeat and lets the lane go; were it to commit, the
commit would be of the same object and only the first one counts. A store that is away for a while stops no training:
what could not be renewed, saved or committed is tried again, and a lane whose pictures cannot be fetched waits for
them while the others step. Knows no Ray.
"""

import contextlib
import logging
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from omnifarm.clock import Clock, SystemClock
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import AccessError, ConceptError, ConfigError, FarmError, NotFoundError, StoreError, TrainingError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.erasure import erase_traces
from omnifarm.farm.events import CountedEvents
from omnifarm.farm.job import JobRecord, JobState, LeaseLostError, pool_of
from omnifarm.farm.metrics import Metrics, NoMetrics
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import CHECKPOINTS, checkpoint_key
from omnifarm.farm.stepping import Failure, step_lanes
from omnifarm.farm.submitted import SubmittedConcepts
from omnifarm.farm.tracking import LaneLog, Tracker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.logs import event
from omnifarm.store.base import Store
from omnifarm.training.checkpoint import save_lane
from omnifarm.training.curves import curve_parquet
from omnifarm.training.lane import Lane
from omnifarm.training.sharding import Turn
from omnifarm.training.workbench import Finished, Workbench

_logger = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Held:
    """A leased job and what is being made of it."""

    record: JobRecord
    spec: ConceptSpec
    lane: Lane
    saved_step: int
    """Step of its newest checkpoint."""
    ended_s: float = 0.0
    """When its last step was over, on the monotonic clock."""
    finished: Finished | None = None
    """What it left, once that is made."""
    waits_since_s: float | None = None
    """Since when its pictures cannot be fetched, on the monotonic clock; None while they can."""
    failure: Failure | None = None
    """Why its attempt is over without a result, if another may go better."""


class Worker:
    """Pulls jobs of one pool until none of them is unfinished.

    Args:
        worker_id: Who this is, in leases and logs.
        store: Holds records, checkpoints and artifacts.
        workbench: Makes and steps lanes.
        recipe: How every one of the jobs is learned; with the backbone it decides the pool.
        settings: How to work.
        cell: The cell it belongs to, which may be told to stop; None outside a cluster.
        metrics: Where numbers go.
        tracker: Where the lanes' losses go, besides their artifacts.
        clock: Time.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        store: Store,
        workbench: Workbench,
        recipe: TrainingRecipe,
        settings: WorkerSettings | None = None,
        cell: str | None = None,
        metrics: Metrics | None = None,
        tracker: Tracker | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._id = worker_id
        self._store = store
        self._workbench = workbench
        self._recipe = recipe
        self._settings = settings or WorkerSettings()
        self._cell = cell
        self._metrics = metrics or NoMetrics()
        self._lane_log = LaneLog(tracker)
        self._clock = clock or SystemClock()
        self._pool = pool_of(recipe_digest=recipe.digest(), backbone_fingerprint=workbench.fingerprint)
        self._queue = JobQueue(store, clock=self._clock, events=CountedEvents(self._metrics))
        self._control = FarmControl(store)
        self._order = Order.WORK
        self._repository = ConceptRepository(store)
        self._concepts = SubmittedConcepts(recipe_digest=recipe.digest(), backbone_fingerprint=workbench.fingerprint)
        self._held: dict[str, _Held] = {}
        self._over: list[_Held] = []
        self._looked_s = self._beat_s = self._saved_s = self._clock.monotonic_s()
        self._away_since_s: float | None = None
        self._wait_s = self._settings.poll_s
        self._is_drained = False

    def run(self) -> None:
        """Work until the pool has nothing left to do, by this worker or another, or until told to leave.

        Raises:
            StoreError: The store was away for longer than `patience_s`; the leases run out by themselves.
        """
        self._look()
        while self._order is not Order.STOP and (self._held or self._over or not self._is_drained):
            if self._held:
                self.step()
            else:
                self._idle()
            self._commit()
            if self._clock.monotonic_s() - self._looked_s >= self._wait_s:
                self._look()
        self._hand_back()
        # The others of a sharded cell need this process until they are done, too.
        while self._workbench.trainer.idle_turn(is_finished=True) is not Turn.OVER:
            pass

    def step(self) -> None:
        """Advance every lane by one step; set aside those that are over; renew and save when due."""
        num_lanes, num_tokens = len(self._held), self._workbench.trainer.count.num_tokens
        stepped = step_lanes(self._workbench)
        self._mind_waiting(stepped.waiting)
        if len(stepped.waiting) == num_lanes:
            self._idle()
        for lane in stepped.over:
            self._set_aside(lane.name)
        for name, failure in stepped.failed.items():
            self._workbench.trainer.remove(name)
            self._set_aside(name, failure)
        self._metrics.count("omnifarm_steps_total", num_lanes)
        self._metrics.count("omnifarm_tokens_total", self._workbench.trainer.count.num_tokens - num_tokens)
        self._heartbeat_if_due()
        now_s = self._clock.monotonic_s()
        if now_s - self._saved_s >= self._settings.checkpoint_s:
            self._saved_s = now_s
            self._save()

    def _idle(self) -> None:
        """Take part in what the others of a sharded cell do; rest if they do nothing."""
        if self._workbench.trainer.idle_turn(is_finished=False) is Turn.WAITING:
            self._clock.sleep_s(self._settings.poll_s)

    def _mind_waiting(self, waiting: Mapping[str, StoreError]) -> None:
        """End the attempts of lanes whose pictures could not be fetched for too long."""
        now_s = self._clock.monotonic_s()
        for name, held in list(self._held.items()):
            if name not in waiting:
                held.waits_since_s = None
                continue
            held.waits_since_s = now_s if held.waits_since_s is None else held.waits_since_s
            if now_s - held.waits_since_s > self._settings.patience_s:
                self._workbench.trainer.remove(name)
                self._set_aside(name, Failure(reason=f"its pictures could not be fetched: {waiting[name]}"))

    def _set_aside(self, name: str, failure: Failure | None = None) -> None:
        """Take a lane that has left the trainer from those that train to those to be committed, or reported."""
        held = self._held.pop(name)
        held.failure = failure
        held.ended_s = self._clock.monotonic_s()
        self._over.append(held)
        self._wait_s = 0.0  # its place is free: look at once, however seldom the last looks were

    @contextlib.contextmanager
    def _patiently(self, what: str) -> Iterator[None]:
        """Go on when the store cannot be reached, unless that has lasted for too long."""
        try:
            yield
        except StoreError as error:
            now_s = self._clock.monotonic_s()
            self._away_since_s = now_s if self._away_since_s is None else self._away_since_s
            self._metrics.count("omnifarm_store_errors_total")
            event(_logger, "store_away", level=logging.WARNING, worker=self._id, doing=what, error=str(error))
            if now_s - self._away_since_s > self._settings.patience_s:
                raise
        else:
            self._away_since_s = None

    def _look(self) -> None:
        """Read the orders that stand, and take as many jobs as there are free lanes."""
        self._looked_s = self._clock.monotonic_s()
        if self._away_since_s is not None:
            # Our own leases may have run out while the store was away: renew them before we take them over ourselves.
            self._commit()
            self._heartbeat()
        with self._patiently("reading orders"):
            self._order = self._control.present(cell=self._cell)
        if self._settings.stop_at_s is not None and self._clock.now_s() >= self._settings.stop_at_s:
            self._order = Order.STOP
        free = 0 if any(map(_is_on_trial, self._held.values())) else self._settings.lanes - len(self._held)
        records: list[JobRecord] = []
        if self._order is Order.WORK and free:
            with self._patiently("leasing"):
                records = self._queue.lease_next(self._id, pool=self._pool, ttl_s=self._settings.lease_s, max=free)
        for record in records:
            if record.is_suspect:
                # Should it end this process, the others were getting on and it is not held against them.
                self._save()
                self._heartbeat()
            with self._patiently("beginning a lane"):
                self._begin(record)
        self._metrics.gauge("omnifarm_lanes", len(self._held))
        # A thousand workers without work must not keep the store busy.
        longest_s = max(self._settings.poll_s, self._settings.lease_s / 4)
        again_s = self._settings.poll_s if records and self._away_since_s is None else 2 * self._wait_s
        self._wait_s = min(max(self._settings.poll_s, again_s), longest_s)
        self._is_drained = self._order is Order.DRAIN
        if not self._held and not self._is_drained:
            with self._patiently("looking for work"):
                self._is_drained = self._queue.is_drained(self._pool)

    def _begin(self, record: JobRecord) -> None:
        """Make a lane of a leased job, or end the attempt with its reason."""
        if record.name in self._held:
            # Another job under the same name: lanes go by name, so it has to wait or go elsewhere.
            self._queue.release(record)
            return
        try:
            spec = self._concepts.spec(record)
            lane = self._lane(record, spec)
        except (ConceptError, ConfigError, FarmError) as error:
            # The same data and settings would fail again.
            self._fail(record, reason=str(error), retryable=False)
        except AccessError as error:
            self._fail(record, reason=str(error), retryable=True)
        except StoreError:
            # Nothing was tried: given back, it is no strike, and somebody may find its pictures soon.
            with contextlib.suppress(LeaseLostError, StoreError):
                self._queue.release(record)
            raise
        except Exception as error:  # noqa: BLE001 - whatever one concept does to us must not stop the others
            self._workbench.trainer.require_device()
            event(_logger, "lane_not_started", level=logging.ERROR, concept=record.name, error=str(error))
            reason = f"{type(error).__name__}: {error}"
            self._fail(record, reason=reason, retryable=True, trace=traceback.format_exc())
        else:
            self._workbench.trainer.add(lane)
            self._held[lane.name] = _Held(record=record, spec=spec, lane=lane, saved_step=lane.step)
            self._lane_log.begin(record, lane)
            event(_logger, "lane_started", concept=record.name, worker=self._id, step=lane.step, steps=record.num_steps)
            # Preparing the next job's pictures takes time in which nobody steps.
            self._heartbeat_if_due()

    def _lane(self, record: JobRecord, spec: ConceptSpec) -> Lane:
        checkpoint: bytes | None = None
        with contextlib.suppress(NotFoundError):
            checkpoint = self._store.get(checkpoint_key(record.job_id)).data
        try:
            return self._workbench.lane(spec, recipe=self._recipe, identity=record.job_id, checkpoint=checkpoint)
        except TrainingError as error:
            if checkpoint is None:
                raise
            event(_logger, "checkpoint_refused", level=logging.WARNING, concept=record.name, reason=str(error))
            return self._workbench.lane(spec, recipe=self._recipe, identity=record.job_id)

    def _commit(self) -> None:
        """Commit lanes that are over, or record why they stopped; what the store cannot take now stays for later."""
        with self._patiently("committing"):
            while self._over:
                self._end(self._over[0])
                self._over.pop(0)

    def _end(self, held: _Held) -> None:
        record, lane = held.record, held.lane
        if held.failure is not None:
            self._fail(record, reason=held.failure.reason, retryable=True, trace=held.failure.trace)
            self._lane_log.end(record, lane, is_learned=False)
            return
        if lane.stopped is not None:
            # What it did until then says more than the reason alone.
            self._store.put(_curve_key(record), curve_parquet(lane))
            self._fail(record, reason=lane.stopped, retryable=False)
            self._lane_log.end(record, lane, is_learned=False)
            return
        if held.finished is None:
            held.finished = self._workbench.finish(lane, spec=held.spec, identity=record.job_id)
        is_first = False
        try:
            # Nothing is written by a worker whose lease is gone, however late it comes.
            held.record = self._queue.heartbeat(record, step=lane.step, ttl_s=self._settings.lease_s)
            done = held.finished
            is_first = self._repository.commit(done.manifest, done.soft_tokens, curve=done.curve)
            self._queue.complete(held.record, artifact=f"artifacts/{record.name}/{record.job_id}/")
        except (LeaseLostError, NotFoundError) as error:
            self._metrics.count("omnifarm_leases_lost_total")
            event(_logger, "late_commit_discarded", concept=record.name, worker=self._id, reason=str(error))
            if self._erase_if_called_off(record) and is_first:
                self._repository.delete(record.name, version=record.job_id)
            self._lane_log.end(record, lane, is_learned=False)
            return
        self._metrics.count("omnifarm_concepts_committed_total")
        self._metrics.observe("omnifarm_commit_seconds", self._clock.monotonic_s() - held.ended_s)
        event(_logger, "concept_learned", concept=record.name, worker=self._id, first=is_first, train_s=lane.train_s)
        self._lane_log.end(record, lane, is_learned=True)
        self._store.delete(checkpoint_key(record.job_id))

    def _heartbeat_if_due(self) -> None:
        now_s = self._clock.monotonic_s()
        if now_s - self._beat_s >= self._settings.heartbeat_s:
            self._beat_s = now_s
            self._heartbeat()

    def _heartbeat(self) -> None:
        """Renew every lease, of lanes that train and of those not yet committed; let go whose lease is lost."""
        with self._patiently("renewing leases"):
            for held in [*self._held.values(), *self._over]:
                self._renew(held)
        self._lane_log.look((held.record, held.lane) for held in self._held.values())
        losses = [held.lane.losses[-1].total for held in self._held.values() if held.lane.losses]
        if losses:
            self._metrics.gauge("omnifarm_loss", sum(losses) / len(losses))

    def _renew(self, held: _Held) -> None:
        name = held.record.name
        try:
            held.record = self._queue.heartbeat(
                held.record, step=held.lane.step, saved_step=held.saved_step, ttl_s=self._settings.lease_s
            )
        except (LeaseLostError, NotFoundError) as error:
            self._metrics.count("omnifarm_leases_lost_total")
            event(_logger, "lane_let_go", level=logging.WARNING, concept=name, worker=self._id, reason=str(error))
            self._erase_if_called_off(held.record)
            self._lane_log.end(held.record, held.lane, is_learned=False)
            if held in self._over:
                self._over.remove(held)
            else:
                self._workbench.trainer.remove(name)
                del self._held[name]

    def _save(self) -> None:
        """Write a checkpoint of every lane that has moved."""
        with self._patiently("saving checkpoints"):
            for held in self._held.values():
                if held.lane.step > held.saved_step:
                    self._store.put(
                        checkpoint_key(held.record.job_id), save_lane(held.lane, identity=held.record.job_id)
                    )
                    held.saved_step = held.lane.step

    def _hand_back(self) -> None:
        """Save and release what is still held: somebody else goes on from here at once."""
        if not self._held:
            return
        self._save()
        self._heartbeat()
        for name, held in list(self._held.items()):
            with contextlib.suppress(LeaseLostError), self._patiently("giving a job back"):
                self._queue.release(held.record)
            self._lane_log.end(held.record, held.lane, is_learned=False)
            self._workbench.trainer.remove(name)
            del self._held[name]

    def _fail(self, record: JobRecord, *, reason: str, retryable: bool, trace: str | None = None) -> None:
        self._metrics.count("omnifarm_attempts_failed_total")
        try:
            self._queue.fail(record, reason=reason, retryable=retryable, traceback=trace)
        except (LeaseLostError, NotFoundError) as error:
            event(_logger, "late_failure_discarded", concept=record.name, worker=self._id, reason=str(error))
            self._erase_if_called_off(record)

    def _erase_if_called_off(self, record: JobRecord) -> bool:
        """Erase what this worker wrote of a job that a person cancelled or deleted meanwhile; return whether one did.

        Whoever deletes a concept cannot see what is written a moment later, so this is left to the one who writes.
        """
        try:
            if self._queue.get(record.job_id).state is not JobState.CANCELLED:
                return False
        except NotFoundError:
            pass
        erase_traces(record, store=self._store)
        return True


def _is_on_trial(held: _Held) -> bool:
    """Whether a lane is a suspect that has not got a checkpoint further: nothing is to join it."""
    lease = held.record.lease
    return held.record.is_suspect and lease is not None and held.saved_step <= lease.from_step


def _curve_key(record: JobRecord) -> str:
    return f"{CHECKPOINTS}{record.job_id}.losses.parquet"
