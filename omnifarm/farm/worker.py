"""What a worker does: lease concepts, train them as lanes, keep the leases, commit what is finished.

    lease -> lane (fresh, or from its checkpoint) -> steps, heartbeats, checkpoints -> artifact -> committed

A worker may die between any two lines. What it had leased is leased by somebody else when the lease has run out, and
goes on from the last checkpoint to the same result, because a lane depends on nothing but its identity and its step.
A worker that was only slow finds its lease gone at the next heartbeat and lets the lane go; were it to commit, the
commit would be of the same object and only the first one counts. Knows no Ray.
"""

import contextlib
import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from omnifarm.clock import Clock, SystemClock
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError, FarmError, NotFoundError, TrainingError
from omnifarm.farm.job import JobRecord, LeaseLostError
from omnifarm.farm.queue import JobQueue
from omnifarm.logs import event
from omnifarm.store.base import Store
from omnifarm.store.open import open_store
from omnifarm.training.checkpoint import save_lane
from omnifarm.training.curves import curve_parquet
from omnifarm.training.lane import Lane
from omnifarm.training.workbench import Workbench

_logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints/"
"""Keys of all lane checkpoints begin with this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """How a worker works; none of it changes what is learned."""

    lanes: int = 4
    """Concepts trained side by side."""
    lanes_per_pack: int = 1
    """Lanes that share one forward; 1 keeps a lane's result exactly what it would be alone."""
    lease_s: float = 40.0
    """Seconds after which an unrenewed lease may be taken over."""
    heartbeat_s: float = 5.0
    """Seconds between renewals; well below the lease."""
    checkpoint_s: float = 30.0
    """Seconds of work that a crash may cost."""
    poll_s: float = 1.0
    """Seconds between looks at the queue while there is nothing to train."""

    def __post_init__(self) -> None:
        for name in ("lanes", "lanes_per_pack"):
            if getattr(self, name) < 1:
                raise ConfigError(f"worker: {name} must be at least 1, found {getattr(self, name)}")
        for name in ("lease_s", "heartbeat_s", "checkpoint_s", "poll_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"worker: {name} must be above 0 seconds, found {getattr(self, name)}")
        if self.heartbeat_s * 2 > self.lease_s:
            raise ConfigError(
                f"worker: heartbeat_s {self.heartbeat_s} must be at most half of lease_s {self.lease_s}, "
                "or one late heartbeat loses the lease"
            )


@dataclass(kw_only=True, slots=True)
class _Held:
    """A leased job and what is being made of it."""

    record: JobRecord
    spec: ConceptSpec
    lane: Lane
    saved_step: int


class Worker:
    """Pulls jobs until none of them is unfinished.

    Args:
        worker_id: Who this is, in leases and logs.
        store: Holds records, checkpoints and artifacts.
        workbench: Makes and steps lanes.
        recipe: How every one of the jobs is learned.
        job_ids: The jobs to finish.
        settings: How to work.
        clock: Time.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        store: Store,
        workbench: Workbench,
        recipe: TrainingRecipe,
        job_ids: Sequence[str],
        settings: WorkerSettings | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._id = worker_id
        self._store = store
        self._workbench = workbench
        self._recipe = recipe
        self._job_ids = list(job_ids)
        self._settings = settings or WorkerSettings()
        self._clock = clock or SystemClock()
        self._queue = JobQueue(store, clock=self._clock)
        self._repository = ConceptRepository(store)
        self._held: dict[str, _Held] = {}
        self._sets: dict[str, dict[str, ConceptSpec | ConceptError]] = {}
        self._looked_s = self._beat_s = self._saved_s = self._clock.monotonic_s()

    def run(self) -> None:
        """Work until every job is committed or failed, by this worker or another.

        Raises:
            StoreError: The store failed where nothing but another worker can help; the leases run out by themselves.
        """
        self._lease()
        while self._held or not self._queue.summary(self._job_ids).is_finished:
            if self._held:
                self.step()
            else:
                self._clock.sleep_s(self._settings.poll_s)
            if self._clock.monotonic_s() - self._looked_s >= self._settings.poll_s:
                self._lease()

    def step(self) -> None:
        """Advance every lane by one step; end those that are over; renew leases and save checkpoints when due."""
        for lane in self._workbench.trainer.step():
            self._end(self._held.pop(lane.name))
        now_s = self._clock.monotonic_s()
        if now_s - self._beat_s >= self._settings.heartbeat_s:
            self._beat_s = now_s
            self._heartbeat()
        if now_s - self._saved_s >= self._settings.checkpoint_s:
            self._saved_s = now_s
            self._save()

    def _lease(self) -> None:
        """Take as many jobs as there are free lanes."""
        self._looked_s = self._clock.monotonic_s()
        free = self._settings.lanes - len(self._held)
        if free < 1:
            return
        for record in self._queue.lease_next(self._id, ttl_s=self._settings.lease_s, max=free, job_ids=self._job_ids):
            self._begin(record)

    def _begin(self, record: JobRecord) -> None:
        """Make a lane of a leased job, or end the attempt with its reason."""
        try:
            spec = self._spec(record)
            lane = self._lane(record, spec)
        except (ConceptError, ConfigError, FarmError) as error:
            # The same data and settings would fail again.
            self._fail(record, reason=str(error), retryable=False)
        except Exception as error:  # noqa: BLE001 - whatever one concept does to us must not stop the others
            event(_logger, "lane_not_started", level=logging.ERROR, concept=record.name, error=str(error))
            reason = f"{type(error).__name__}: {error}"
            self._fail(record, reason=reason, retryable=True, trace=traceback.format_exc())
        else:
            self._workbench.trainer.add(lane)
            self._held[lane.name] = _Held(record=record, spec=spec, lane=lane, saved_step=lane.step)
            event(_logger, "lane_started", concept=record.name, worker=self._id, step=lane.step, steps=record.num_steps)
            # Preparing the next job's pictures takes time in which nobody steps.
            self._heartbeat()

    def _spec(self, record: JobRecord) -> ConceptSpec:
        """Read a job's concept and check that everything is what the job was submitted for."""
        if record.concept_url not in self._sets:
            self._sets[record.concept_url] = dict(load_concepts(record.concept_url))
        spec = self._sets[record.concept_url].get(record.name)
        if spec is None:
            raise ConceptError(f"concept {record.name!r} is gone from {record.concept_url}; submit what is there now")
        if isinstance(spec, ConceptError):
            raise spec
        if spec.digest() != record.identity.spec_digest:
            raise ConceptError(
                f"concept {record.name!r} was changed in {record.concept_url} after it was submitted; submit it again"
            )
        for what, expected, found in (
            ("recipe", record.identity.recipe_digest, self._recipe.digest()),
            ("backbone", record.identity.backbone_fingerprint, self._workbench.fingerprint),
        ):
            if expected != found:
                raise FarmError(
                    f"job {record.name!r} asks for the {what} {expected[:12]}, this worker has {found[:12]}; "
                    "submit it to a run of its own"
                )
        return spec

    def _lane(self, record: JobRecord, spec: ConceptSpec) -> Lane:
        checkpoint: bytes | None = None
        with contextlib.suppress(NotFoundError):
            checkpoint = self._store.get(_checkpoint_key(record)).data
        try:
            return self._workbench.lane(spec, recipe=self._recipe, identity=record.job_id, checkpoint=checkpoint)
        except TrainingError as error:
            if checkpoint is None:
                raise
            event(_logger, "checkpoint_refused", level=logging.WARNING, concept=record.name, reason=str(error))
            return self._workbench.lane(spec, recipe=self._recipe, identity=record.job_id)

    def _end(self, held: _Held) -> None:
        """Commit a finished lane or record why it stopped."""
        record, lane = held.record, held.lane
        if lane.stopped is not None:
            # What it did until then says more than the reason alone.
            self._store.put(_curve_key(record), curve_parquet(lane))
            self._fail(record, reason=lane.stopped, retryable=False)
            return
        finished = self._workbench.finish(lane, spec=held.spec, identity=record.job_id)
        try:
            # Nothing is written by a worker whose lease is gone, however late it comes.
            record = self._queue.heartbeat(record, step=lane.step, ttl_s=self._settings.lease_s)
            is_first = self._repository.commit(finished.manifest, finished.soft_tokens, curve=finished.curve)
            self._queue.complete(record, artifact=f"artifacts/{record.name}/{record.job_id}/")
        except LeaseLostError as error:
            event(_logger, "late_commit_discarded", concept=record.name, worker=self._id, reason=str(error))
            return
        event(_logger, "concept_learned", concept=record.name, worker=self._id, first=is_first, train_s=lane.train_s)
        self._store.delete(_checkpoint_key(record))

    def _heartbeat(self) -> None:
        """Renew every lease; let lanes go whose lease is lost."""
        for name, held in list(self._held.items()):
            try:
                held.record = self._queue.heartbeat(held.record, step=held.lane.step, ttl_s=self._settings.lease_s)
            except LeaseLostError as error:
                event(_logger, "lane_let_go", level=logging.WARNING, concept=name, worker=self._id, reason=str(error))
                self._workbench.trainer.remove(name)
                del self._held[name]

    def _save(self) -> None:
        """Write a checkpoint of every lane that has moved."""
        for held in self._held.values():
            if held.lane.step > held.saved_step:
                self._store.put(_checkpoint_key(held.record), save_lane(held.lane, identity=held.record.job_id))
                held.saved_step = held.lane.step

    def _fail(self, record: JobRecord, *, reason: str, retryable: bool, trace: str | None = None) -> None:
        try:
            self._queue.fail(record, reason=reason, retryable=retryable, traceback=trace)
        except LeaseLostError as error:
            event(_logger, "late_failure_discarded", concept=record.name, worker=self._id, reason=str(error))


def run_worker(
    worker_id: str,
    *,
    store_url: str,
    backbone: str,
    recipe: TrainingRecipe,
    job_ids: Sequence[str],
    settings: WorkerSettings,
    device: str = "cpu",
) -> None:
    """Load a backbone and work until every job is committed or failed; the body of a worker process.

    Raises:
        WeightsError: The backbone cannot be loaded.
        StoreError: The store failed.
    """
    store = open_store(store_url)
    workbench = Workbench.open(
        backbone, precision=recipe.precision, device=device, lanes_per_pack=settings.lanes_per_pack, store=store
    )
    Worker(
        worker_id,
        store=store,
        workbench=workbench,
        recipe=recipe,
        job_ids=job_ids,
        settings=settings,
    ).run()


def _checkpoint_key(record: JobRecord) -> str:
    return f"{CHECKPOINTS}{record.job_id}.safetensors"


def _curve_key(record: JobRecord) -> str:
    return f"{CHECKPOINTS}{record.job_id}.losses.parquet"
