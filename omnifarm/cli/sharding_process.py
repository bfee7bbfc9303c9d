"""One process of `omnifarm perf sharding`: loads its share of a backbone, trains its lanes, leaves numbers behind.

    python -m omnifarm.cli.sharding_process PLAN.json RANK

The environment names the process group (MASTER_ADDR, MASTER_PORT). Memory is what the process itself allocated
(RssAnon), so that neither shared libraries nor the file system's cache count.
"""

import ctypes
import gc
import json
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError
from omnifarm.training.checkpoint import save_lane
from omnifarm.training.lane import Lane
from omnifarm.training.precision import weights_dtype
from omnifarm.training.sharded_backbone import open_backbone
from omnifarm.training.sharding import Turn
from omnifarm.training.workbench import Workbench

TIMEOUT_S = 900
"""Seconds after which a process gives the others up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the processes of one cell do; the same for all of them."""

    backbone: str
    """Folder of the backbone."""
    sharding: str
    """Name of the layout."""
    concepts: str
    """Folder of concepts."""
    num_ranks: int
    """Processes of the cell."""
    lanes: list[list[str]]
    """Concepts of every rank; a single process takes all groups in turn, as the ranks would."""
    recipe: dict[str, Any]
    """How they are learned; the lanes of group g take g steps less."""
    out: str
    """Folder for lanes and numbers."""


def main(plan: Plan, rank: int) -> None:
    """Run one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=plan.num_ranks, timeout=timedelta(seconds=TIMEOUT_S))
    recipe = TrainingRecipe.from_json(plan.recipe)
    specs = dict(load_concepts(plan.concepts))
    _warm_up(specs[plan.lanes[0][0]], recipe=recipe, sharding=plan.sharding)
    before_bytes = _resting_bytes()
    _forget_peak()
    read_before = _bytes_read()
    backbone, sharding = open_backbone(
        plan.backbone, sharding=plan.sharding, dtype=weights_dtype(recipe.precision, "cpu")
    )
    read = _bytes_read() - read_before
    loading_bytes = _peak_bytes() - before_bytes
    for group in range(len(plan.lanes)) if plan.num_ranks == 1 else [rank]:
        workbench = Workbench(backbone, sharding=sharding, lanes_per_pack=2)
        names = plan.lanes[group] if group < len(plan.lanes) else []
        lanes = []
        for name in names:
            spec = specs[name]
            assert isinstance(spec, ConceptSpec)
            lane = workbench.lane(spec, recipe=recipe.with_overrides({"steps": recipe.steps - group}), identity=name)
            workbench.trainer.add(lane)
            lanes.append(lane)
        _train(workbench)
        for lane in lanes:
            _leave(lane, Path(plan.out))
        del workbench, lanes
    numbers = {
        "rest_bytes": _resting_bytes() - before_bytes,
        "loading_bytes": loading_bytes,
        "peak_bytes": _peak_bytes() - before_bytes,
        "bytes_read": read,
    }
    (Path(plan.out) / f"rank{rank}.json").write_text(json.dumps(numbers))
    dist.barrier()
    dist.destroy_process_group()


def _warm_up(spec: ConceptSpec | ConceptError, *, recipe: TrainingRecipe, sharding: str) -> None:
    """Load and train something small once, so that libraries and pictures are in memory before anything is measured."""
    assert isinstance(spec, ConceptSpec)
    workbench = Workbench.open("miniature", precision=recipe.precision, sharding=sharding)
    recipe = recipe.with_overrides({"steps": 1, "warmup_steps": 0})
    workbench.trainer.add(workbench.lane(spec, recipe=recipe, identity="warm-up"))
    _train(workbench)


def _train(workbench: Workbench) -> None:
    while True:
        if workbench.trainer.lanes:
            workbench.trainer.step()
        elif workbench.trainer.idle_turn(is_finished=True) is Turn.OVER:
            return


def _leave(lane: Lane, folder: Path) -> None:
    if lane.stopped is not None:
        raise SystemExit(f"lane {lane.name} stopped: {lane.stopped}")
    (folder / f"{lane.name}.lane").write_bytes(save_lane(lane, identity=lane.name))


def _resting_bytes() -> int:
    gc.collect()
    # What was freed goes back to the system only when asked for.
    ctypes.CDLL(None).malloc_trim(0)
    return _status("RssAnon")


def _peak_bytes() -> int:
    # The peak counts shared and mapped pages too; these hardly change after the start.
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _bytes_read() -> int:
    """Return what this process has read by read calls, from whatever file or socket."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar:"))


if __name__ == "__main__":
    main(Plan(**json.loads(Path(sys.argv[1]).read_text())), int(sys.argv[2]))
