"""`omnifarm miniature evaluate`: learn a fresh benchmark with the default recipe and measure everything about it.

Concepts are dealt to worker processes; each learns its share through the ordinary workbench, commits the artifacts,
and measures them through the ordinary engine.
"""

import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from omnifarm.cli.output import people
from omnifarm.errors import ConfigError

_EDITS = "edit_"
_BOOTSTRAPS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPlan:
    """What is evaluated."""

    seed: int
    """Of the benchmark."""
    folder: Path
    """Receives concepts, store and contact sheets."""
    persons: int = 10
    """How many persons."""
    pets: int = 5
    """How many pets."""
    objects: int = 5
    """How many objects."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Recipe fields that differ from the backbone's own; None leaves a field."""
    backbone: str = "miniature"
    """Name or folder."""
    lanes_per_pack: int = 4
    """Concepts in one forward pass."""
    baselines: bool = True
    """Whether to measure the baselines too."""


def evaluate(plan: EvaluationPlan, *, workers: int) -> dict[str, Any]:
    """Learn and measure a benchmark.

    Args:
        plan: What is evaluated.
        workers: Processes, one thread each.

    Returns:
        The report: `metrics` (means), `intervals` (95 %, bootstrap over concepts), `baselines` and
        `baseline_intervals`, `minutes` of learning, `concepts` (values of each).
    """
    from omnifarm.miniature.benchmark import draw_benchmark
    from omnifarm.miniature.benchmark_files import write_plain
    from omnifarm.miniature.measures import psnr_of

    concepts = draw_benchmark(plan.seed, num_persons=plan.persons, num_pets=plan.pets, num_objects=plan.objects)
    write_plain(plan.folder / "concepts", concepts)
    shares = [list(range(len(concepts)))[worker::workers] for worker in range(workers)]
    context = multiprocessing.get_context("spawn")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with context.Manager() as manager, Progress(*columns, console=people) as progress:
        ticks: Queue[tuple[str, int]] = manager.Queue()
        bars: dict[str, Any] = {}
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            futures = [pool.submit(_work, plan, share, ticks) for share in shares if share]
            while not all(future.done() for future in futures) or not ticks.empty():
                if ticks.empty():
                    time.sleep(0.3)
                    continue
                name, count = ticks.get()
                if name.startswith("total "):
                    bar = bars.setdefault(name[6:], progress.add_task(name[6:], total=0))
                    progress.update(bar, total=(progress.tasks[bar].total or 0) + count)
                else:
                    progress.advance(bars[name], count)
            parts = [future.result() for future in futures]
    by_name = {name: values for part in parts for name, values in part["concepts"].items()}
    ordered = {concept.name: by_name[concept.name] for concept in concepts}
    summary = _summary([values["learned"] for values in ordered.values()])
    summary["metrics"]["codec_subject_psnr"] = round(psnr_of([part["codec_subject_error"] for part in parts]), 2)
    return {
        "seed": plan.seed,
        **summary,
        "baselines": _baselines(list(ordered.values()), part="metrics"),
        "baseline_intervals": _baselines(list(ordered.values()), part="intervals"),
        "minutes": round(max(part["learning_s"] for part in parts) / 60, 2),
        "concepts": ordered,
    }


def _work(plan: EvaluationPlan, share: Sequence[int], ticks: "Queue[tuple[str, int]]") -> dict[str, Any]:
    """Learn and measure the concepts `share`; runs in a process of its own."""
    import torch

    from omnifarm.backbone.weights import load_backbone, resolve_folder
    from omnifarm.cli.miniature_systems import BASELINES, LearnedSystem, PromptedSystem, round_trip, sheet
    from omnifarm.miniature import measures
    from omnifarm.miniature.benchmark import draw_benchmark
    from omnifarm.miniature.judge import Judge
    from omnifarm.miniature.render import render

    torch.set_num_threads(1)
    concepts = draw_benchmark(plan.seed, num_persons=plan.persons, num_pets=plan.pets, num_objects=plan.objects)
    mine = [concepts[index] for index in share]
    began = time.monotonic()
    _learn(plan, [concept.name for concept in mine], ticks)
    learning_s = time.monotonic() - began
    loaded = load_backbone(plan.backbone)
    judge = Judge.load(resolve_folder(plan.backbone))
    round_trip_of = partial(round_trip, loaded)
    ticks.put(("total measuring", len(mine)))
    results: dict[str, Any] = {}
    rows = []
    for concept in mine:
        learned = LearnedSystem(loaded, store=plan.folder / "store", name=concept.name)
        pictures = measures.measure_drawings(concept, learned, judge)
        replayed = measures.measure_replay(concept, learned, judge)
        removed = measures.measure_removals(concept, learned, judge, round_trip=round_trip_of)
        edited = measures.measure_edits(concept, learned, judge)
        values = measures.measure_answers(concept, learned)
        for measured in (pictures, replayed, removed, edited):
            values |= measured.values
        row = [render(scene) for scene in concept.train[:2]]
        row += [*pictures.pictures["drawn"], *replayed.pictures["parg_replay"][:3]]
        result: dict[str, Any] = {"learned": values}
        for kind in BASELINES if plan.baselines else ():
            system = PromptedSystem(loaded, concept, kind=kind)  # type: ignore[arg-type]
            drawn = measures.measure_drawings(concept, system, judge)
            result[kind] = measures.measure_answers(concept, system)
            for measured in (
                drawn,
                measures.measure_replay(concept, system, judge, replays=False),
                measures.measure_removals(concept, system, judge, round_trip=round_trip_of),
                measures.measure_edits(concept, system, judge),
            ):
                result[kind] |= measured.values
            row.append(drawn.pictures["drawn"][0])
        rows.append([*row, *removed.pictures["removal"][:4], *edited.pictures["edit"]])
        results[concept.name] = result
        ticks.put(("measuring", 1))
    sheet(rows).save(plan.folder / f"sheet{share[0]}.png")
    error = measures.codec_subject_error(mine, round_trip=round_trip_of)
    return {"concepts": results, "learning_s": learning_s, "codec_subject_error": error}


def _learn(plan: EvaluationPlan, names: Sequence[str], ticks: "Queue[tuple[str, int]]") -> None:
    from omnifarm.concept.datasets.load import load_concepts
    from omnifarm.concept.repository import ConceptRepository
    from omnifarm.concept.spec import ConceptSpec
    from omnifarm.farm.submission import inspect_backbone
    from omnifarm.store.local import LocalStore
    from omnifarm.training.compiling import compiling_pays, has_compiler
    from omnifarm.training.workbench import Workbench

    recipe = inspect_backbone(plan.backbone, overrides=plan.overrides).recipe
    bench = Workbench.open(
        plan.backbone,
        precision=recipe.precision,
        lanes_per_pack=plan.lanes_per_pack,
        compiled=compiling_pays(num_concepts=len(names), steps=recipe.steps, num_workers=1) and has_compiler("cpu"),
    )
    repository = ConceptRepository(LocalStore(plan.folder / "store"))
    specs: dict[str, ConceptSpec] = {}
    for name, spec in load_concepts(str(plan.folder / "concepts")):
        if name in names:
            assert isinstance(spec, ConceptSpec), spec
            specs[name] = spec
    ticks.put(("total learning", recipe.steps * len(specs)))
    for name, spec in specs.items():
        bench.trainer.add(bench.lane(spec, recipe=recipe, identity=f"evaluation-{name}"))
    while bench.trainer.lanes:
        active = len(bench.trainer.lanes)
        for lane in bench.trainer.step():
            done = bench.finish(lane, spec=specs[lane.name], identity=f"evaluation-{lane.name}")
            repository.commit(done.manifest, done.soft_tokens)
        ticks.put(("learning", active))


def _summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return means and 95 % intervals over concepts, and the same of the edit operations' mean and least mean."""
    rng = np.random.default_rng(0)
    # The first row holds the concepts as they are, the others are drawn from them: of concepts, not of values, so that
    # the operations of one draw are those of the same concepts.
    draws = np.vstack([np.arange(len(rows)), rng.integers(0, len(rows), (_BOOTSTRAPS, len(rows)))])
    means = {name: np.nanmean(np.array([row[name] for row in rows], float)[draws], axis=1) for name in rows[0]}
    operations = [values for name, values in means.items() if name.startswith(_EDITS)]
    if operations:
        means |= {"edit_mean": np.mean(operations, axis=0), "edit_min": np.min(operations, axis=0)}
    return {
        "metrics": {name: round(float(values[0]), 4) for name, values in means.items()},
        "intervals": {
            name: [round(float(q), 4) for q in np.nanquantile(values[1:], (0.025, 0.975))]
            for name, values in means.items()
        },
    }


def compare(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare two ways of learning over the same benchmarks, concept by concept.

    Args:
        first: Reports of `evaluate`, one a benchmark.
        second: Reports of the other way, in any order of the same benchmarks.

    Returns:
        `seeds`, `num_concepts`, and `metrics`: per metric the means of both, the mean difference (second minus first)
        and its 95 % interval, bootstrap over concepts.

    Raises:
        ConfigError: The reports are not about the same concepts.
    """
    ours, theirs = ({report["seed"]: report["concepts"] for report in reports} for reports in (first, second))
    names = {seed: set(concepts) for seed, concepts in ours.items()}
    if names != {seed: set(concepts) for seed, concepts in theirs.items()}:
        raise ConfigError(
            f"expected reports about the same concepts, found benchmarks {sorted(ours)} of {sum(map(len, ours.values()))} "
            f"concepts and {sorted(theirs)} of {sum(map(len, theirs.values()))}; evaluate the same seeds with the same counts"
        )
    pairs = [(ours[s][n]["learned"], theirs[s][n]["learned"]) for s in sorted(names) for n in sorted(names[s])]
    rng = np.random.default_rng(0)
    metrics: dict[str, Any] = {}
    for name in pairs[0][0]:
        both = np.array([(a[name], b[name]) for a, b in pairs if name in a and name in b], float)
        both = both[~np.isnan(both).any(axis=1)]
        if not len(both):
            continue
        gain = both[:, 1] - both[:, 0]
        means = gain[rng.integers(0, len(gain), (_BOOTSTRAPS, len(gain)))].mean(axis=1)
        metrics[name] = {
            "first": round(float(both[:, 0].mean()), 4),
            "second": round(float(both[:, 1].mean()), 4),
            "difference": round(float(gain.mean()), 4),
            "interval": [round(float(q), 4) for q in np.quantile(means, (0.025, 0.975))],
        }
    return {"seeds": sorted(names), "num_concepts": len(pairs), "metrics": metrics}


def _baselines(results: Sequence[Mapping[str, Mapping[str, float]]], *, part: str) -> dict[str, dict[str, Any]]:
    kinds = [kind for kind in results[0] if kind != "learned"]
    return {kind: _summary([result[kind] for result in results])[part] for kind in kinds}


def default_workers() -> int:
    """Return how many processes this machine has cores for."""
    return max(1, len(os.sched_getaffinity(0)))
