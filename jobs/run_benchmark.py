"""Retrain and score the whole benchmark: the job that a cluster is asked to run.

    ray job submit --working-dir . -- python jobs/run_benchmark.py --data miniature:0 --store s3://bucket/farm --quick
    python jobs/run_benchmark.py --data /data/unictokens_data --store ./farm --judge gpt-4o-2024-11-20

Learns every concept for every row on the farm, asks every row everything, scores the replies and writes the report
under `benchmark/<run>/` in the store. The same command again goes on where the last one ended; `omnifarm bench score`
scores what is there with another judge.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import typer
from rich.markup import escape

from omnifarm.cli import bench_options as option
from omnifarm.cli import bench_run
from omnifarm.cli import bench_settings as settings
from omnifarm.cli.bench import command_line, show
from omnifarm.cli.output import Json, people
from omnifarm.cli.places import resolve_place
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import OmniFarmError
from omnifarm.farm import ray_cluster
from omnifarm.farm.planner import cpus_on_one_node, plan_cells
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.logs import configure
from omnifarm.training.compiling import compiling_pays


class ClusterWork:
    """Work on a Ray cluster: trainings as cells of the farm, one after the other; asking as tasks."""

    def __init__(self, *, workers: int | None) -> None:
        self._workers = workers
        self._has_gpu = ray_cluster.cluster_gpus() > 0

    @property
    def num_workers(self) -> int:
        """Processes that work at once."""
        return self._workers or (ray_cluster.cluster_gpus() or ray_cluster.cluster_cpus())

    def train(self, *, store_url: str, backbone: str, num_jobs: int, recipe: TrainingRecipe) -> None:
        """See `Work.train`."""
        shape = plan_cells(
            num_jobs=num_jobs,
            num_cpus=ray_cluster.cluster_cpus(),
            num_gpus=ray_cluster.cluster_gpus(),
            cells=1,
            workers_per_cell=self._workers,
            cpus_at_most=cpus_on_one_node(ray_cluster.node_sizes(), use_gpu=self._has_gpu),
        )
        ray_cluster.run_cell(
            ray_cluster.CellConfig(
                name=f"bench-{secrets.token_hex(4)}",
                store=store_url,
                backbone=backbone,
                recipe=recipe,
                num_workers=shape.num_workers,
                cpus_per_worker=shape.cpus_per_worker,
                use_gpu=shape.use_gpu,
                worker=WorkerSettings(
                    lanes=shape.lanes,
                    compiled=compiling_pays(num_concepts=num_jobs, steps=recipe.steps, num_workers=shape.num_workers),
                ),
            )
        )

    def each(self, do: Callable[[Mapping[str, Any]], object], shares: Sequence[Mapping[str, Any]]) -> None:
        """See `Work.each`; a task whose worker dies is run again and goes on."""
        gpus = 1 if self._has_gpu else 0
        device = "cuda" if self._has_gpu else "cpu"
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(do)
        ray.get([task.remote({**share, "device": device, "threads": 1}) for share in shares])


def main(
    data: option.Data,
    store: option.StoreUrl,
    backbone: option.Backbone = "miniature",
    quick: option.Quick = False,
    variants: option.Variants = "default",
    baselines: option.Baselines = "default",
    others: option.Others = "",
    others_url: option.OthersUrl = option.OPENAI,
    local_models: option.LocalModels = "",
    seeds: option.Seeds = "0",
    steps: option.Steps = None,
    recipe: option.Recipe = None,
    concepts: option.Concepts = None,
    images: option.Images = None,
    name: option.Name = "",
    workers: option.Workers = None,
    at_once: option.AtOnce = option.AT_ONCE,
    retry_failed: option.RetryFailed = False,
    protocol: option.ProtocolName = "strict",
    judge: option.Judge = "",
    judge_url: option.JudgeUrl = option.OPENAI,
    judge_concurrency: option.JudgeAtOnce = 4,
    judge_prices: option.JudgePrices = "0,0",
    clip: option.Clip = option.CLIP,
    dino: option.Dino = option.DINO,
    arcface: option.ArcFace = None,
    json: Json = False,
) -> None:
    """Learn, ask, score and report on the cluster; exit code 2 if the job could not run."""
    configure(level="WARNING")
    try:
        place = data if data.startswith("miniature:") else resolve_place(data, what="--data")
        plan = settings.plan_of(
            data=place,
            backbone=backbone,
            quick=quick,
            variants=variants,
            baselines=baselines,
            others=others,
            others_url=others_url,
            local_models=local_models,
            seeds=seeds,
            steps=steps,
            recipe=recipe,
            concepts=concepts,
            images=images,
            name=name,
        )
        scoring = settings.scoring_of(
            protocol=protocol,
            judge=judge,
            judge_url=judge_url,
            judge_concurrency=judge_concurrency,
            judge_prices=judge_prices,
            clip=clip,
            dino=dino,
            arcface=arcface,
        )
        url = resolve_place(store, what="--store")
        prepared = bench_run.prepare(plan, store_url=url)
        bench_run.say(f"run {plan.run}: {len(plan.rows)} rows, {len(prepared.data.benchmark.items)} items")
        ray_cluster.connect()
        work = ClusterWork(workers=workers)
        bench_run.carry_out(prepared, work, at_once=at_once, retry_failed=retry_failed)
        report = bench_run.score(prepared, scoring, command=command_line())
    except OmniFarmError as error:
        people.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    show(report, store=url, as_json=json)


if __name__ == "__main__":
    typer.run(main)
