"""Losses for people who keep them in MLflow, Weights & Biases or Trackio: one job is one run there, whoever trains it.

    LaneLog (what to write, when) -> Background (never slows or stops training) -> MLflow | W&B | Trackio

Where the service is and who we are comes from the service's own variables (`MLFLOW_TRACKING_URI`, `WANDB_API_KEY`,
`TRACKIO_SPACE_ID` ...). What is sent: names, recipes and losses; never pictures, facts or credentials.
"""

import contextlib
import contextvars
import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, Protocol

from omnifarm.errors import ConfigError
from omnifarm.farm.job import JobRecord
from omnifarm.logs import event
from omnifarm.training.curves import finite_mean
from omnifarm.training.lane import Lane, StepLosses

PROJECT = "omnifarm"
"""Experiment or project that all runs belong to."""
_MAX_WAITING = 10_000
_CLOSE_S = 30.0
_LOSSES = tuple(column.name for column in fields(StepLosses))
_logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """Takes the numbers of runs. May raise whatever its service raises."""

    def begin(self, job_id: str, *, name: str, settings: Mapping[str, Any]) -> None:
        """Open the run of a job, or go on with the one that an earlier worker opened."""
        ...

    def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
        """Write finite numbers of a begun run."""
        ...

    def end(self, job_id: str, *, is_learned: bool) -> None:
        """Close a begun run; it may be begun again."""
        ...


class MlflowTracker:
    """Runs of MLflow, found again by a tag."""

    def __init__(self) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        found = self._client.get_experiment_by_name(PROJECT)
        self._experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self._runs: dict[str, str] = {}

    def begin(self, job_id: str, *, name: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker.begin`."""
        found = self._client.search_runs([self._experiment], filter_string=f"tags.`omnifarm.job` = '{job_id}'")
        if found:
            self._runs[job_id] = found[0].info.run_id
            self._client.update_run(self._runs[job_id], status="RUNNING")
            return
        run = self._client.create_run(self._experiment, run_name=name, tags={"omnifarm.job": job_id})
        self._runs[job_id] = run.info.run_id
        for key, value in settings.items():
            self._client.log_param(run.info.run_id, key, value)

    def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        for key, value in values.items():
            self._client.log_metric(self._runs[job_id], key, value, step=step)

    def end(self, job_id: str, *, is_learned: bool) -> None:
        """See `Tracker.end`."""
        self._client.set_terminated(self._runs.pop(job_id), status="FINISHED" if is_learned else "FAILED")


class WandbTracker:
    """Runs of Weights & Biases under the job's id."""

    def __init__(self) -> None:
        import wandb

        self._wandb = wandb
        self._runs: dict[str, Any] = {}

    def begin(self, job_id: str, *, name: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker.begin`."""
        self._runs[job_id] = self._wandb.init(
            project=PROJECT, id=job_id, name=name, config=dict(settings), resume="allow", reinit="create_new"
        )

    def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._runs[job_id].log(dict(values), step=step)

    def end(self, job_id: str, *, is_learned: bool) -> None:
        """See `Tracker.end`."""
        self._runs.pop(job_id).finish(exit_code=0 if is_learned else 1)


class TrackioTracker:
    """Runs of Trackio, named by concept and job."""

    def __init__(self) -> None:
        import trackio

        self._trackio = trackio
        self._runs: dict[str, Any] = {}

    def begin(self, job_id: str, *, name: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker.begin`."""
        # Trackio ends the context's last run when it begins another; a context each lets lanes run side by side.
        self._runs[job_id] = contextvars.Context().run(
            self._trackio.init,
            project=PROJECT,
            name=f"{name}-{job_id[:12]}",
            config=dict(settings),
            resume="allow",
            embed=False,
        )

    def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`."""
        self._runs[job_id].log(dict(values), step=step)

    def end(self, job_id: str, *, is_learned: bool) -> None:
        """See `Tracker.end`."""
        self._runs.pop(job_id).finish()


TRACKERS: dict[str, Callable[[], Tracker]] = {
    "mlflow": MlflowTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}
"""What can be tracked with, by the name of its Python package."""


def check_tracker(name: str) -> None:
    """Raise ConfigError unless there is such a tracker and its package is installed here."""
    if name not in TRACKERS:
        raise ConfigError(f"expected a tracker out of {', '.join(TRACKERS)}, found {name!r}")
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"--track {name} needs the package {name}, which is not installed: pip install {name}")


@contextlib.contextmanager
def open_tracker(name: str | None) -> Iterator[Tracker | None]:
    """Yield the tracker of that name, in the background, and let it finish writing at the end; None for None.

    Raises:
        ConfigError: There is no such tracker, or its package is missing.
    """
    if name is None:
        yield None
        return
    check_tracker(name)
    tracker = Background(TRACKERS[name])
    try:
        yield tracker
    finally:
        tracker.close()


class Background:
    """Runs a tracker in a thread of its own: a service that is slow, away or angry costs its numbers and nothing else.

    Args:
        make: Makes the tracker; called in that thread.
    """

    def __init__(self, make: Callable[[], Tracker]) -> None:
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_MAX_WAITING)
        self._num_lost = 0
        self._thread = threading.Thread(target=self._work, args=(make,), daemon=True)
        self._thread.start()

    def begin(self, job_id: str, *, name: str, settings: Mapping[str, Any]) -> None:
        """See `Tracker.begin`; returns at once."""
        self._put(lambda tracker: tracker.begin(job_id, name=name, settings=settings))

    def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker.log`; returns at once."""
        self._put(lambda tracker: tracker.log(job_id, step=step, values=values))

    def end(self, job_id: str, *, is_learned: bool) -> None:
        """See `Tracker.end`; returns at once."""
        self._put(lambda tracker: tracker.end(job_id, is_learned=is_learned))

    def close(self) -> None:
        """Wait until everything is written, half a minute at most."""
        self._put(None)
        self._thread.join(_CLOSE_S)

    def _put(self, act: Callable[[Tracker], None] | None) -> None:
        try:
            self._waiting.put_nowait(act)
        except queue.Full:
            self._lose("more numbers wait than are kept")

    def _work(self, make: Callable[[], Tracker]) -> None:
        tracker: Tracker | None = None
        while (act := self._waiting.get()) is not None:
            try:
                tracker = tracker or make()
                act(tracker)
            except Exception as error:  # noqa: BLE001 - a service we do not own; its words may hold URLs with keys
                self._lose(type(error).__name__)

    def _lose(self, reason: str) -> None:
        self._num_lost += 1
        if self._num_lost & (self._num_lost - 1) == 0:  # the first, second, fourth, eighth ...
            event(_logger, "numbers_not_tracked", level=logging.WARNING, reason=reason, lost=self._num_lost)


class LaneLog:
    """Writes the losses of lanes as they train: means over the steps since it last looked.

    Args:
        tracker: Where to; None writes nothing.
    """

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker = tracker
        self._written: dict[str, int] = {}

    def begin(self, record: JobRecord, lane: Lane) -> None:
        """Begin with a lane, fresh or from its checkpoint."""
        if self._tracker is not None:
            self._written[record.job_id] = lane.step
            settings = {"concept": record.name, "backbone": record.identity.backbone_fingerprint[:12]}
            self._tracker.begin(record.job_id, name=record.name, settings={**settings, **lane.recipe.to_json()})

    def look(self, lanes: Iterable[tuple[JobRecord, Lane]]) -> None:
        """Write what has come since the last look."""
        if self._tracker is None:
            return
        for record, lane in lanes:
            steps = lane.losses[self._written[record.job_id] :]
            means = {name: finite_mean(getattr(one, name) for one in steps) for name in _LOSSES}
            if values := {name: mean for name, mean in means.items() if mean is not None}:
                self._tracker.log(record.job_id, step=lane.step, values=values)
            self._written[record.job_id] = lane.step

    def end(self, record: JobRecord, lane: Lane, *, is_learned: bool) -> None:
        """Write the rest of a lane that was begun, and close its run; safe to repeat."""
        if self._tracker is not None and record.job_id in self._written:
            self.look([(record, lane)])
            del self._written[record.job_id]
            self._tracker.end(record.job_id, is_learned=is_learned)
