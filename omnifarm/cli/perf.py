"""`omnifarm perf`: speed as ratios, both sides measured in turn in one run."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from omnifarm.cli.output import Json, people, print_json

app = typer.Typer(no_args_is_help=True)


@app.callback()
def perf() -> None:
    """Speed as ratios, both sides measured in turn in one run."""


@app.command()
def train(
    lanes: Annotated[int, typer.Option(min=2, help="How many concepts share a pack.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Measured steps of each side, after one warm-up each.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    json: Json = False,
) -> None:
    """Compare float32 with bf16 weights, and concepts one after another with concepts in one pack.

    The same concepts, samples and number of steps on every side; sides take turns, so that a machine whose speed drifts
    does not favour one. Ratios above 1 mean the second side is faster.
    """
    import torch

    torch.set_num_threads(threads)
    steppers = {
        name: _trainer(precision=precision, num_lanes=lanes, lanes_per_pack=lanes_per_pack, rounds=rounds)
        for name, precision, lanes_per_pack in (
            ("float32, one by one", "float32", 1),
            ("bf16, one by one", "bfloat16", 1),
            ("bf16, one pack", "bfloat16", lanes),
        )
    }
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(rounds + 1):
        for name, trainer in steppers.items():
            started = time.perf_counter()
            trainer.step()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    reference, single, packed = medians.values()
    report: dict[str, Any] = {
        "lanes": lanes,
        "threads": threads,
        "step_s": {name: round(value, 4) for name, value in medians.items()},
        "gains": {"precision": round(reference / single, 3), "packing": round(single / packed, 3)},
    }
    if json:
        print_json(report)
        return
    for name, value in medians.items():
        people.print(f"{name:<22} {value * 1000 / lanes:7.1f} ms for one step of one concept")
    people.print(f"bf16 over float32: {reference / single:.2f}x; packing over one by one: {single / packed:.2f}x")


def _trainer(*, precision: str, num_lanes: int, lanes_per_pack: int, rounds: int) -> Any:
    """Return a trainer with fresh lanes of held-out concepts of the drawn world."""
    from omnifarm.backbone.weights import load_backbone
    from omnifarm.concept.datasets.load import load_concepts
    from omnifarm.concept.recipe import TrainingRecipe
    from omnifarm.concept.spec import ConceptSpec
    from omnifarm.miniature.benchmark import write_concept_folders
    from omnifarm.training.workbench import DTYPES, Workbench

    loaded = load_backbone("miniature", dtype=DTYPES[precision])  # type: ignore[index]
    recipe = TrainingRecipe.from_json(
        {**loaded.config.defaults.get("recipe", {}), "precision": precision, "steps": rounds + 1}
    )
    workbench = Workbench(loaded, lanes_per_pack=lanes_per_pack)
    with tempfile.TemporaryDirectory() as folder:
        concepts = Path(folder) / "concepts"
        write_concept_folders(concepts, seed=0, num_persons=num_lanes, num_pets=0, num_objects=0)
        for name, spec in load_concepts(str(concepts)):
            assert isinstance(spec, ConceptSpec)
            workbench.trainer.add(workbench.lane(spec, recipe=recipe, identity=name))
    return workbench.trainer
