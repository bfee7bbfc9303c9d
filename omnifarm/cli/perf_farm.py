"""`omnifarm perf farm`: what the farm costs over a bare training loop, with one cell and with two."""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from omnifarm.cli.local_cluster import LocalCluster, local_cluster
from omnifarm.cli.output import people
from omnifarm.clock import SystemClock
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError, FarmError
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import inspect_backbone
from omnifarm.store.open import open_store
from omnifarm.training.workbench import Workbench

_LOOK_S = 0.2


def measure_farm(*, concepts: Path, steps: int, lanes: int, backbone: str, checkout: Path) -> dict[str, Any]:
    """Learn the same concepts in a bare loop, on a farm of one cell, and on a farm of two.

    Every side has one thread a worker, one lane a forward, nothing compiled and one worker a cell. A farm's time counts from its first
    lease to its last commit; what comes before is its start-up, paid once per cell however many concepts it learns.

    Args:
        concepts: Folder of concept folders.
        steps: Steps per concept; the fewer, the more a commit weighs.
        lanes: Concepts trained side by side.
        backbone: Backbone to train on.
        checkout: The folder that holds `jobs/train_concepts.py`.

    Returns:
        `overhead` (share of the bare loop's time that one cell needs on top), `startup_s`, `concepts_per_hour`.

    Raises:
        ConfigError: There is no job in `checkout`.
        FarmError: A farm did not learn every concept.
    """
    if not (checkout / "jobs" / "train_concepts.py").is_file():
        raise ConfigError(f"expected a checkout of OmniFarm, found no jobs/train_concepts.py in {checkout}")
    with people.status("a bare loop"):
        bare_s, num_concepts = _bare(concepts, steps=steps, lanes=lanes, backbone=backbone)
    spans, startups = {}, {}
    for cells in (1, 2):
        with people.status(f"a farm of {cells} cells"), tempfile.TemporaryDirectory(prefix="omf-perf-") as folder:
            what = ["--concepts", str(concepts), "--steps", str(steps), "--lanes", str(lanes), "--backbone", backbone]
            startups[cells], spans[cells] = _farm(what, store=f"{folder}/store", cells=cells, checkout=checkout)
    sizes = {"concepts": num_concepts, "steps": steps, "lanes": lanes, "cpus": os.cpu_count()}
    return sizes | farm_report(num_concepts, bare_s=bare_s, spans_s=spans, startup_s=startups[1])


def farm_report(num_concepts: int, *, bare_s: float, spans_s: Mapping[int, float], startup_s: float) -> dict[str, Any]:
    """Compare a farm with a bare loop.

    Args:
        num_concepts: Concepts that each side learned.
        bare_s: Seconds of the bare loop.
        spans_s: By number of cells, 1 and 2: seconds from a farm's first lease to its last commit.
        startup_s: Seconds before the first lease.
    """
    per_hour = {"bare loop": bare_s, **{f"{cells} cells": span_s for cells, span_s in spans_s.items()}}
    return {
        "overhead": round(spans_s[1] / bare_s - 1, 4),
        "startup_s": round(startup_s, 1),
        "concepts_per_hour": {name: round(num_concepts * 3600 / seconds, 1) for name, seconds in per_hour.items()},
        "speedup_of_2_cells": round(spans_s[1] / spans_s[2], 3),
    }


def _bare(concepts: Path, *, steps: int, lanes: int, backbone: str) -> tuple[float, int]:
    """Return seconds and concepts of a loop that knows no store, no queue and no cluster."""
    torch.set_num_threads(1)
    chosen = inspect_backbone(backbone, overrides={"steps": steps})
    workbench = Workbench.open(chosen.name, precision=chosen.recipe.precision)
    waiting = [spec for _, spec in load_concepts(str(concepts)) if isinstance(spec, ConceptSpec)]
    num_concepts = len(waiting)
    began_s = time.perf_counter()
    while waiting or workbench.trainer.lanes:
        while waiting and len(workbench.trainer.lanes) < lanes:
            spec = waiting.pop()
            workbench.trainer.add(workbench.lane(spec, recipe=chosen.recipe, identity=spec.name))
        workbench.trainer.step()
    return time.perf_counter() - began_s, num_concepts


def _farm(what: list[str], *, store: str, cells: int, checkout: Path) -> tuple[float, float]:
    """Return seconds until the first lease, and from there to the last commit."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout)}
    command = [sys.executable, "jobs/train_concepts.py", *what, "--store", store]
    command += ["--cells", str(cells), "--workers-per-cell", "1", "--lanes-per-pack", "1", "--eager"]
    with local_cluster(num_cpus=cells, environment=environment) as cluster, _watching(store) as seen:
        began_s = time.time()
        code = _run(command, cluster=cluster, checkout=checkout)
        records = JobQueue(open_store(store), clock=SystemClock()).list()
    if code or any(record.state is not JobState.COMMITTED for record in records) or not seen:
        raise FarmError(f"expected every concept to be learned, the job ended with code {code}; its log stands above")
    return seen[0] - began_s, max(record.updated_at_s for record in records) - seen[0]


def _run(command: list[str], *, cluster: LocalCluster, checkout: Path) -> int:
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    return subprocess.call(command, cwd=checkout, env=environment, stdout=sys.stderr)


@contextlib.contextmanager
def _watching(store: str) -> Iterator[list[float]]:
    """Note when a record is first held."""
    seen: list[float] = []
    stop = threading.Event()
    queue = JobQueue(open_store(store), clock=SystemClock())

    def watch() -> None:
        while not seen and not stop.wait(_LOOK_S):
            if any(record.attempts for record in queue.list()):
                seen.append(time.time())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
