"""A process that learns one concept, writes a checkpoint after every step, and goes on from it when started again."""

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


def learn(concepts: str, store_folder: str) -> torch.Tensor:
    """Return the soft tokens after the last step."""
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
    while workbench.trainer.lanes:
        workbench.trainer.step()
        store.put(KEY, save_lane(lane, identity="x"))
        sys.stdout.write(f"{lane.step}\n")
        sys.stdout.flush()
    return lane.soft.detach()


if __name__ == "__main__":
    learn(sys.argv[1], sys.argv[2])
