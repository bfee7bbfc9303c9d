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
from collections.abc import Mapping
from functools import partial

from omnifarm.clock import Clock, SystemClock
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import AccessError, ConceptError, ConfigError, FarmError, NotFoundError, StoreError, TrainingError
from omnifarm.farm.control import FarmControl, Order
from omnifarm.farm.erasure import erase_if_called_off
from omnifarm.farm.events import CountedEvents
from omnifarm.farm.held import Held
from omnifarm.farm.job import JobRecord, LeaseLostError, pool_of
from omnifarm.farm.metrics import Metrics, NoMetrics
from omnifarm.farm.patience import Patience
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
from omnifarm.training.workbench import Workbench

_logger = logging.getLogger(__name__)


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
        self._concepts = SubmittedConcepts(
            store, recipe_digest=recipe.digest(), backbone_fingerprint=workbench.fingerprint
        )
        self._leased: dict[str, JobRecord] = {}
        self._held: dict[str, Held] = {}
        self._over: list[Held] = []
        self._looked_s = self._beat_s = self._saved_s = self._clock.monotonic_s()
        self._patience = Patience(
            worker_id, limit_s=self._settings.patience_s, clock=self._clock, metrics=self._metrics
        )
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
        if self._held:
            self._hand_back()
        # The others of a sharded cell need this process until they are done, too.
        while self._workbench.trainer.idle_turn(is_finished=True) is not Turn.OVER:
            pass

    def step(self) -> None:
        """Advance every lane by one step; set aside those that are over; renew and save when due."""
        lanes, num_tokens = [held.lane for held in self._held.values()], self._workbench.trainer.count.num_tokens
        num_steps = sum(lane.step for lane in lanes)
        stepped = step_lanes(self._workbench)
        # Lanes that wait or fail take no step, and a farm of which all wait stands still.
        self._metrics.count("omnifarm_steps_total", sum(lane.step for lane in lanes) - num_steps)
        self._metrics.count("omnifarm_tokens_total", self._workbench.trainer.count.num_tokens - num_tokens)
        self._mind_waiting(stepped.waiting)
        if len(stepped.waiting) == len(lanes):
            self._idle()
        for lane in stepped.over:
            self._set_aside(lane.name)
        for name, failure in stepped.failed.items():
            self._workbench.trainer.remove(name)
            self._set_aside(name, failure)
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

    def _look(self) -> None:
        """Read the orders that stand, and take as many jobs as there are free lanes."""
        self._looked_s = self._clock.monotonic_s()
        if self._patience.is_tried:
            # Our own leases may have run out while the store was away: renew them before we take them over ourselves.
            self._commit()
            self._heartbeat()
        with self._patience.bear("reading orders"):
            self._order = self._control.present(cell=self._cell)
        if self._settings.stop_at_s is not None and self._clock.now_s() >= self._settings.stop_at_s:
            self._order = Order.STOP
        free = 0 if any(held.is_on_trial for held in self._held.values()) else self._settings.lanes - len(self._held)
        records: list[JobRecord] = []
        with self._patience.bear("leasing"):
            if self._order is Order.WORK and free:
                records = self._queue.lease_next(self._id, pool=self._pool, ttl_s=self._settings.lease_s, max=free)
        # Each waits while the pictures of those before it are read, and its lease is kept meanwhile.
        self._leased = {record.job_id: record for record in records}
        if any(record.is_suspect for record in records):
            # Should it end this process, the others were getting on and it is not held against them.
            self._save()
            self._heartbeat()
        begin = [partial(self._begin, record.job_id) for record in records]
        self._patience.bear_each("beginning lanes", begin, is_endless=True)
        self._metrics.gauge("omnifarm_lanes", len(self._held))
        # A thousand workers without work must not keep the store busy.
        longest_s = max(self._settings.poll_s, self._settings.lease_s / 4)
        again_s = self._settings.poll_s if records and not self._patience.is_tried else 2 * self._wait_s
        self._wait_s = min(max(self._settings.poll_s, again_s), longest_s)
        self._is_drained = self._order is Order.DRAIN
        with self._patience.bear("looking for work"):
            if not self._held and not self._is_drained:
                self._is_drained = self._queue.is_drained(self._pool)

    def _begin(self, job_id: str) -> None:
        """Make a lane of a leased job, or end the attempt with its reason; a lease that was lost meanwhile is let go."""
        record = self._leased.get(job_id)
        if record is None:
            return
        try:
            if record.name in self._held:
                # Another job under the same name: lanes go by name, so it has to wait or go elsewhere.
                self._queue.release(record)
                return
            spec = self._concepts.spec(record)
            lane = self._lane(record, spec)
        except LeaseLostError:
            # Once more: pictures prepared since were written after the order to forget them.
            erase_if_called_off(record, store=self._store, queue=self._queue)
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
            record = self._leased[job_id]
            self._workbench.trainer.add(lane)
            self._held[lane.name] = Held(record=record, spec=spec, lane=lane, saved_step=lane.step)
            self._lane_log.begin(record, lane)
            event(_logger, "lane_started", concept=record.name, worker=self._id, step=lane.step, steps=record.num_steps)
        finally:
            self._leased.pop(job_id, None)

    def _lane(self, record: JobRecord, spec: ConceptSpec) -> Lane:
        checkpoint: bytes | None = None
        with contextlib.suppress(NotFoundError):
            checkpoint = self._store.get(checkpoint_key(record.job_id)).data

        def between_pictures() -> None:
            # Reading a concept's pictures may take longer than a lease, its own and those of all others here.
            self._heartbeat_if_due()
            if record.job_id not in self._leased:
                raise LeaseLostError(f"job {record.name!r} went to somebody else while its pictures were read")

        make = partial(
            self._workbench.lane, spec, recipe=self._recipe, identity=record.job_id, between=between_pictures
        )
        try:
            return make(checkpoint=checkpoint)
        except TrainingError as error:
            if checkpoint is None:
                raise
            event(_logger, "checkpoint_refused", level=logging.WARNING, concept=record.name, reason=str(error))
            return make()

    def _commit(self) -> None:
        """Commit lanes that are over, or record why they stopped; what the store cannot take now stays for later."""

        def commit(held: Held) -> None:
            self._end(held)
            self._over.remove(held)

        self._patience.bear_each("committing", [partial(commit, held) for held in self._over])

    def _end(self, held: Held) -> None:
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
        try:
            # Nothing is written by a worker whose lease is gone, however late it comes.
            held.record = self._queue.heartbeat(record, step=lane.step, ttl_s=self._settings.lease_s)
            done = held.finished
            was_tried, held.is_written = held.is_written, True
            is_first = self._repository.commit(done.manifest, done.soft_tokens, curve=done.curve)
            held.is_written = is_first or was_tried
            self._queue.complete(held.record, artifact=f"artifacts/{record.name}/{record.job_id}/")
        except (LeaseLostError, NotFoundError) as error:
            self._metrics.count("omnifarm_leases_lost_total")
            event(_logger, "late_commit_discarded", concept=record.name, worker=self._id, reason=str(error))
            erase_if_called_off(record, store=self._store, queue=self._queue, is_written=held.is_written)
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
        renew = [partial(self._renew_leased, record) for record in self._leased.values()]
        renew += [partial(self._renew, held) for held in [*self._held.values(), *self._over]]
        self._patience.bear_each("renewing leases", renew)
        self._lane_log.look((held.record, held.lane) for held in self._held.values())
        losses = [held.lane.losses[-1].total for held in self._held.values() if held.lane.losses]
        if losses:
            self._metrics.gauge("omnifarm_loss", sum(losses) / len(losses))

    def _renew_leased(self, record: JobRecord) -> None:
        """Renew the lease of a job whose lane is yet to begin."""
        try:
            self._leased[record.job_id] = self._queue.heartbeat(record, step=record.step, ttl_s=self._settings.lease_s)
        except (LeaseLostError, NotFoundError) as error:
            self._lose(record, error)
            # Last: what the store could not erase is tried again at the next heartbeat.
            del self._leased[record.job_id]

    def _renew(self, held: Held) -> None:
        try:
            held.record = self._queue.heartbeat(
                held.record, step=held.lane.step, saved_step=held.saved_step, ttl_s=self._settings.lease_s
            )
        except (LeaseLostError, NotFoundError) as error:
            self._lose(held.record, error, is_written=held.is_written)
            self._lane_log.end(held.record, held.lane, is_learned=False)
            if held in self._over:
                self._over.remove(held)
            else:
                self._workbench.trainer.remove(held.record.name)
                del self._held[held.record.name]

    def _lose(self, record: JobRecord, error: Exception, *, is_written: bool = False) -> None:
        self._metrics.count("omnifarm_leases_lost_total")
        event(_logger, "lane_let_go", level=logging.WARNING, concept=record.name, worker=self._id, reason=str(error))
        erase_if_called_off(record, store=self._store, queue=self._queue, is_written=is_written)

    def _save(self) -> None:
        """Write a checkpoint of every lane that has moved."""

        def save(held: Held) -> None:
            self._store.put(checkpoint_key(held.record.job_id), save_lane(held.lane, identity=held.record.job_id))
            held.saved_step = held.lane.step

        moved = [held for held in self._held.values() if held.lane.step > held.saved_step]
        self._patience.bear_each("saving checkpoints", [partial(save, held) for held in moved])

    def _hand_back(self) -> None:
        """Save and release what is still held: somebody else goes on from here at once."""
        self._save()
        self._heartbeat()

        def give_back(name: str, held: Held) -> None:
            self._lane_log.end(held.record, held.lane, is_learned=False)
            self._workbench.trainer.remove(name)
            del self._held[name]
            with contextlib.suppress(LeaseLostError):
                self._queue.release(held.record)

        self._patience.bear_each("giving jobs back", [partial(give_back, *item) for item in self._held.items()])

    def _fail(self, record: JobRecord, *, reason: str, retryable: bool, trace: str | None = None) -> None:
        try:
            self._queue.fail(record, reason=reason, retryable=retryable, traceback=trace)
        except (LeaseLostError, NotFoundError) as error:
            event(_logger, "late_failure_discarded", concept=record.name, worker=self._id, reason=str(error))
            erase_if_called_off(record, store=self._store, queue=self._queue)


def _curve_key(record: JobRecord) -> str:
    return f"{CHECKPOINTS}{record.job_id}.losses.parquet"
