"""A process that trains a few steps and says how many bytes that took at most, beyond what its libraries take.

python -m tests.unit.training.training_memory CONCEPTS PRECISION
"""

import ctypes
import gc
import sys
from pathlib import Path

import torch

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import Precision, TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.farm.submission import inspect_backbone
from omnifarm.training.workbench import Workbench

STEPS = 3


def peak_bytes(concepts: str, precision: Precision) -> int:
    """Train every concept of a folder in one pack; return the growth of what this process itself has allocated."""
    torch.set_num_threads(1)
    specs = [spec for _, spec in load_concepts(concepts) if isinstance(spec, ConceptSpec)]
    recipe = inspect_backbone("miniature", overrides={"steps": STEPS, "precision": precision}).recipe
    # Once for the libraries, which load much of themselves on first use.
    _train(specs[:1], recipe=recipe.with_overrides({"steps": 1, "warmup_steps": 0}))
    gc.collect()
    # What was freed goes back to the system only when asked for.
    ctypes.CDLL(None).malloc_trim(0)
    before = _status("RssAnon")
    Path("/proc/self/clear_refs").write_text("5")
    _train(specs, recipe=recipe)
    # The peak counts mapped files too, which hardly change after the start.
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem") - before


def _train(specs: list[ConceptSpec], *, recipe: TrainingRecipe) -> None:
    workbench = Workbench.open("miniature", precision=recipe.precision, lanes_per_pack=len(specs))
    for spec in specs:
        workbench.trainer.add(workbench.lane(spec, recipe=recipe, identity="x"))
    while workbench.trainer.lanes:
        workbench.trainer.step()


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    sys.stdout.write(f"{peak_bytes(sys.argv[1], sys.argv[2])}\n")  # type: ignore[arg-type]
