"""Losses in other people's tools: every tracker keeps runs apart, and none of them can hurt a training."""

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from omnifarm.backbone.weights import load_backbone
from omnifarm.clock import ManualClock
from omnifarm.errors import ConfigError
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import inspect_backbone, submit_concepts
from omnifarm.farm.tracking import TRACKERS, Background, Tracker, check_tracker, open_tracker
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.memory import MemoryStore
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE, write_concepts


class Notebook:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = defaultdict(list)
        self.settings: dict[str, Mapping[str, Any]] = {}
        self.values: dict[str, list[Mapping[str, float]]] = defaultdict(list)

    def begin(self, job_id: str, *, name: str, settings: Mapping[str, Any]) -> None:
        self.lines[job_id].append(f"begin {name}")
        self.settings[job_id] = settings

    def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
        self.lines[job_id].append(f"step {step}")
        self.values[job_id].append(values)

    def end(self, job_id: str, *, is_learned: bool) -> None:
        self.lines[job_id].append("learned" if is_learned else "not learned")


@pytest.mark.filterwarnings("ignore")  # of other people's packages
@pytest.mark.parametrize("name", TRACKERS)
def test_two_runs_stand_side_by_side_and_one_goes_on_later(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip(name)
    tracker: Tracker = TRACKERS[name]()
    tracker.begin("1f", name="ada", settings={"steps": 6})
    tracker.begin("2f", name="bob", settings={"steps": 6})
    tracker.log("1f", step=1, values={"total": 3.5})
    tracker.log("2f", step=2, values={"total": 4.5, "editing": 1.0})
    tracker.end("1f", is_learned=False)
    tracker.log("2f", step=4, values={"total": 2.5})
    tracker.end("2f", is_learned=True)
    tracker.begin("1f", name="ada", settings={"steps": 6})
    tracker.log("1f", step=3, values={"total": 1.5})
    tracker.end("1f", is_learned=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = b"".join(str(path).encode() + path.read_bytes() for path in files)
    assert b"ada" in written
    assert b"bob" in written
    assert b"total" in written


def test_a_tracker_that_is_not_there_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="mlflow, wandb, trackio"):
        WorkerSettings(track="notebook")
    monkeypatch.setitem(TRACKERS, "no_such_package", Notebook)
    with pytest.raises(ConfigError, match="pip install no_such_package"):
        check_tracker("no_such_package")
    with open_tracker(None) as tracker:
        assert tracker is None


def test_a_slow_or_failing_tracker_holds_up_nobody_and_tells_no_secret(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("omnifarm")
    monkeypatch.setattr(logger, "handlers", [])
    may_answer = threading.Event()

    class Angry(Notebook):
        def log(self, job_id: str, *, step: int, values: Mapping[str, float]) -> None:
            may_answer.wait()
            if step < 2:
                raise ConnectionError("https://user:hunter2@tracker refused")
            super().log(job_id, step=step, values=values)

    angry = Angry()
    background = Background(lambda: angry)
    caplog.set_level(logging.WARNING, logger="omnifarm")
    monkeypatch.setattr(logger, "propagate", True)
    background.begin("a", name="ada", settings={})
    for step in range(4):
        background.log("a", step=step, values={"total": 1.0})  # nobody answers yet, and it returns
    may_answer.set()
    background.end("a", is_learned=True)
    background.close()
    assert angry.lines["a"] == ["begin ada", "step 2", "step 3", "learned"]
    lost = [record.fields for record in caplog.records if record.message == "numbers_not_tracked"]  # type: ignore[attr-defined]
    assert [(one["reason"], one["lost"]) for one in lost] == [("ConnectionError", 1), ("ConnectionError", 2)]
    assert "hunter2" not in caplog.text


def test_every_lane_is_a_run_with_its_recipe_its_losses_and_its_outcome(tmp_path: Path) -> None:
    folder = write_concepts(tmp_path, ["ada", "bob"])
    backbone = inspect_backbone(str(CHECKPOINT), overrides=RECIPE)
    store, clock, notebook = MemoryStore(), ManualClock(), Notebook()
    queue = JobQueue(store, clock=clock)
    jobs = {job.name: job for job in submit_concepts(str(folder), queue=queue, backbone=backbone)}
    loaded = load_backbone(str(CHECKPOINT))

    def worker(name: str) -> Worker:
        bench = Workbench(loaded, clock=clock)
        return Worker(name, store=store, workbench=bench, recipe=backbone.recipe, tracker=notebook, clock=clock)

    first = worker("first")
    first._look()
    for _ in range(2):
        first.step()
    clock.advance_s(6)
    first.step()  # a heartbeat is due
    first._hand_back()
    second = worker("second")
    second._look()
    with torch.no_grad():
        second._held["bob"].lane.soft.fill_(float("nan"))
    second.run()
    ada, bob = (notebook.lines[jobs[name].job_id] for name in ("ada", "bob"))
    assert ada == ["begin ada", "step 3", "not learned", "begin ada", "step 6", "learned"]
    assert bob == ["begin bob", "step 3", "not learned", "begin bob", "not learned"]
    assert queue.get(jobs["bob"].job_id).state is JobState.FAILED
    settings = notebook.settings[jobs["ada"].job_id]
    assert (settings["concept"], settings["steps"], settings["num_und"]) == ("ada", 6, 2)
    assert not [value for value in settings.values() if "sea" in str(value)], "facts stay at home"
    assert all({"total", "grad_norm"} <= values.keys() for values in notebook.values[jobs["ada"].job_id])
