"""A process that learns one concept, writes a checkpoint after every step, and goes on from it when started again.

    python -m tests.unit.training.one_lane CONCEPTS STORE [hold]

It says its step when it starts and whenever a checkpoint of it is written. With `hold` it never takes the last one.
"""

import sys
from pathlib import Path

import torch

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import NotFoundError
from omnifarm.store.local import LocalStore
from omnifarm.training.checkpoint import save_lane
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE

STEPS = 12
KEY = "lane.safetensors"


def learn(concepts: str, store_folder: str, *, holds: bool = False) -> None:
    """Take every step, or all but the last and wait there to be killed."""
    torch.set_num_threads(1)
    store = LocalStore(Path(store_folder))
    ((_, spec),) = load_concepts(concepts)
    assert isinstance(spec, ConceptSpec)
    recipe = TrainingRecipe.from_json({**RECIPE, "steps": STEPS, "held_out_photos": 1, "held_out_every": 3})
    workbench = Workbench.open(str(CHECKPOINT), precision="float32", store=store)
    try:
        checkpoint = store.get(KEY).data
    except NotFoundError:
        checkpoint = None
    lane = workbench.lane(spec, recipe=recipe, identity="x", checkpoint=checkpoint)
    workbench.trainer.add(lane)
    _say(lane.step)
    while workbench.trainer.lanes:
        if holds and lane.step == STEPS - 1:
            sys.stdin.read()
        workbench.trainer.step()
        store.put(KEY, save_lane(lane, identity="x"))
        _say(lane.step)


def _say(step: int) -> None:
    sys.stdout.write(f"{step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    learn(sys.argv[1], sys.argv[2], holds="hold" in sys.argv[3:])
