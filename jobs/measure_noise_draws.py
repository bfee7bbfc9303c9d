"""How many noised copies behind one condition learn fastest: held-out loss against seconds of computing.

    python jobs/measure_noise_draws.py --budget-s 60

Every setting learns the same concepts from the same photographs with the same recipe but for `noise_draws`, each as
many steps as fit its seconds of computing. The held-out loss is taken on photographs nobody learned from, with fixed
noise, outside the measured time. Prints one JSON document.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.held_out import split_held_out
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.recipe import TASKS, TrainingRecipe
from omnifarm.concept.samples import ConceptSamples
from omnifarm.concept.spec import ConceptSpec
from omnifarm.miniature.benchmark import write_concept_folders
from omnifarm.training.lane import Lane
from omnifarm.training.loop import Trainer
from omnifarm.training.objective import lane_loss
from omnifarm.training.precision import weights_dtype
from omnifarm.training.sharding import Replicated
from omnifarm.training.step import pack_lanes

HELD_OUT_PHOTOS = 3
HELD_OUT_STEPS = range(3)


def main() -> None:
    """Parse options, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=60.0, help="seconds of computing for each setting")
    parser.add_argument("--settings", type=int, nargs="+", default=[1, 2, 3, 5], help="values of noise_draws")
    parser.add_argument("--points", type=int, default=3, help="held-out measurements along the way")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, object] = {"budget_s": options.budget_s, "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder:
        write_concept_folders(Path(folder), seed=11, num_persons=1, num_pets=1, num_objects=0)
        specs = [spec for _, spec in load_concepts(folder) if isinstance(spec, ConceptSpec)]
        report["curves"] = {
            number: measure(specs, noise_draws=number, budget_s=options.budget_s, points=options.points)
            for number in options.settings
        }
    print(json.dumps(report, indent=1))


def measure(specs: list[ConceptSpec], *, noise_draws: int, budget_s: float, points: int) -> list[dict[str, float]]:
    """Learn with one setting; return held-out losses along the way."""
    backbone = load_backbone("miniature", dtype=weights_dtype("bfloat16", "cpu"))
    images = PreparedImages(backbone)
    usual = {
        **backbone.config.defaults.get("recipe", {}),
        "decay_from": 1.0,
        "steps": 100_000,
        "is_self_described": False,
    }
    recipe = TrainingRecipe.from_json({**usual, "noise_draws": noise_draws})
    careful = TrainingRecipe.from_json({**usual, "noise_draws": 6, "text_dropout": 0.0})
    trainer = Trainer(
        Replicated(backbone.model), special_ids=backbone.special_ids, config=backbone.config, lanes_per_pack=len(specs)
    )
    judges = []
    for spec in specs:
        learned, held_out = split_held_out(spec, count=HELD_OUT_PHOTOS)
        for one in (learned, held_out):
            images.get_all(one)
        source = ConceptSamples(learned, recipe=recipe, backbone=backbone, images=images)
        lane = Lane.start(
            spec.name,
            recipe=recipe,
            source=source,
            soft_CD=torch.zeros(recipe.num_soft_tokens, backbone.config.hidden_size),
        )
        trainer.add(lane)
        fixed = ConceptSamples(held_out, recipe=careful, backbone=backbone, images=images)
        judges.append(Lane(name=spec.name, recipe=careful, source=fixed, soft=lane.soft, moments=lane.moments))
    spent_s, curve = 0.0, []
    for point in range(1, 1 + points):
        while spent_s < budget_s * point / points:
            started = time.process_time()
            trainer.step()
            spent_s += time.process_time() - started
        terms: dict[str, list[float]] = {task: [] for task in TASKS}
        for step in HELD_OUT_STEPS:
            drawn = [judge.source.draw(step) for judge in judges]
            packed, tasks, spans = pack_lanes(judges, drawn, special_ids=backbone.special_ids, config=backbone.config)
            with torch.no_grad():
                output = backbone.model.train_forward(packed, soft_table=torch.cat([one.soft for one in judges]))
            for span in spans:
                for task, term in lane_loss(output, tasks=tasks, samples=span, recipe=careful).terms.items():
                    terms[task].append(float(term))
        row = {"noise_draws": noise_draws, "computing_s": round(spent_s, 1), "steps": trainer.lanes[0].step}
        row |= {task: round(statistics.fmean(values), 4) for task, values in terms.items() if values}
        sys.stderr.write(json.dumps(row) + "\n")
        curve.append(row)
    return curve


if __name__ == "__main__":
    main()
