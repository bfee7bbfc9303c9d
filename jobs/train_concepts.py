"""Learn every concept at a place: the job that a cluster is asked to run.

    ray job submit --working-dir . -- python jobs/train_concepts.py --concepts s3://bucket/concepts --store s3://bucket/farm
    python jobs/train_concepts.py --concepts ./my-concepts --store ./farm          (a private cluster on this machine)

Running it again does nothing for concepts that are committed and goes on with those that are not. A concept that
cannot be learned fails alone; the exit code is then 1.
"""

import hashlib
import secrets
from functools import partial
from typing import Annotated

import typer
from rich.markup import escape

from omnifarm.cli.job_progress import announce, say, showing_progress, summarise
from omnifarm.cli.output import json_object, people
from omnifarm.cli.places import resolve_place
from omnifarm.clock import SystemClock
from omnifarm.errors import ConfigError, OmniFarmError
from omnifarm.farm import ray_cluster
from omnifarm.farm.cells import CellFleet, FleetPlan
from omnifarm.farm.control import FarmControl
from omnifarm.farm.growth import Device, await_places
from omnifarm.farm.job import JobState
from omnifarm.farm.overview import OwnJobs, outcome
from omnifarm.farm.planner import cpus_on_one_node, places_for, plan_cells
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.sharing import DriverRegistry
from omnifarm.farm.submission import inspect_backbone, submit_concepts
from omnifarm.farm.worker_settings import WorkerSettings, checkpoint_for, heartbeat_for, lease_for
from omnifarm.logs import configure
from omnifarm.store.open import open_store
from omnifarm.store.probe import probe_conditional_writes
from omnifarm.training.compiling import compiling_pays
from omnifarm.training.precision import weights_dtype
from omnifarm.training.sharded_backbone import weights_bytes
from omnifarm.training.sharding import least_workers, require_shareable


def main(
    concepts: Annotated[str, typer.Option(help="A concept folder, a folder of them, a UnifyBench folder, or s3://...")],
    store: Annotated[str, typer.Option(help="Where records, checkpoints and artifacts go: a folder or s3://...")],
    backbone: Annotated[str, typer.Option(help="miniature, a checkpoint folder, or a Hugging Face id.")] = "miniature",
    steps: Annotated[int | None, typer.Option(help="Steps per concept; default: the backbone's recipe.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, bfloat16 or float8 weights.")] = None,
    recipe: Annotated[str | None, typer.Option(help='More recipe settings as JSON, such as {"num_und": 8}.')] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this concept; may be repeated.")] = None,
    cells: Annotated[str, typer.Option(help="Most cells at a time: a number, or auto for as many as fit.")] = "auto",
    workers_per_cell: Annotated[int | None, typer.Option(help="Workers of a cell; default: from the cluster.")] = None,
    sharding: Annotated[
        str, typer.Option(help="How a cell's workers hold the backbone: auto (by memory), replicated, zero3 or fsdp2.")
    ] = "auto",
    device: Annotated[
        Device,
        typer.Option(
            help="What workers train on; cpu and gpu wait for a first cell's nodes, auto takes what is there."
        ),
    ] = Device.AUTO,
    device_gb: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="Memory of a worker's device, by which cells get the workers that hold the backbone; default: asked.",
        ),
    ] = None,
    lanes: Annotated[int | None, typer.Option(help="Concepts a worker trains side by side.")] = None,
    lanes_per_pack: Annotated[int, typer.Option(help="Lanes that share one forward; fewer need less memory.")] = 4,
    max_concepts: Annotated[int | None, typer.Option(min=1, help="Learn at most so many that are not learned.")] = None,
    priority: Annotated[int, typer.Option(min=0, max=9, help="Higher goes first, and gets more of the cluster.")] = 5,
    deadline: Annotated[
        float | None, typer.Option(min=0, help="Seconds after which to save, give back and end; run again to go on.")
    ] = None,
    checkpoint_s: Annotated[
        float | None,
        typer.Option(help="Seconds of work that a crash may cost; default: 30, or a quarter of a longer lease."),
    ] = None,
    lease_s: Annotated[
        float | None,
        typer.Option(
            help="Seconds until a silent worker's concepts are taken over; default: 40, from 200 concepts on 300."
        ),
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="Where losses go besides the artifacts: mlflow, wandb or trackio.")
    ] = None,
    max_failures: Annotated[int, typer.Option(help="Failures of one cell, and failed cells, before giving up.")] = 8,
    compiled: Annotated[
        bool | None,
        typer.Option("--compiled/--eager", help="Compile in every worker first; default: where it pays in time."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON on standard output.")] = False,
) -> None:
    """Learn every concept at a place; exit code 1 if any failed, 2 if the job could not run."""
    configure(level="WARNING")
    clock = SystemClock()
    began_s = clock.monotonic_s()
    try:
        overrides = {
            "steps": steps,
            "batch_size": batch_size,
            "learning_rate": lr,
            "seed": seed,
            "precision": precision,
            **json_object(recipe, what="--recipe"),
        }
        max_cells = _number_of_cells(cells)
        url, place = resolve_place(store, what="--store"), resolve_place(concepts, what="--concepts")
        opened = open_store(url)
        probe_conditional_writes(opened)
        queue = JobQueue(opened, clock=clock)
        chosen = inspect_backbone(backbone, overrides=overrides)
        if sharding in ("zero3", "fsdp2"):
            require_shareable(chosen.recipe)
        records = submit_concepts(
            place,
            queue=queue,
            backbone=chosen,
            only=only or (),
            max_concepts=max_concepts,
            submission=hashlib.sha256(place.encode()).hexdigest()[:12],
            priority=priority,
        )
        job_ids = [record.job_id for record in records]
        announce(records, backbone=backbone, fingerprint=chosen.fingerprint, steps=chosen.recipe.steps)
        pending = [record for record in records if not record.state.is_finished]
        if pending:
            FarmControl(opened).require_work(store=url)
            ray_cluster.connect()
            over_s = None if deadline is None else clock.now_s() + deadline
            wait_for = partial(
                await_places,
                device,
                nodes=ray_cluster.node_sizes,
                ask=ray_cluster.ask_for_nodes,
                say=say,
                clock=clock,
                until_s=over_s,
            )
            use_gpu = wait_for(workers_per_cell or 1)
            least = 1
            room = None if device_gb is None else int(device_gb * 1e9)
            if room is None and workers_per_cell is None and sharding != "replicated":
                # Whoever names the workers knows his devices; each worker looks at its own memory all the same.
                room = ray_cluster.device_bytes(use_gpu=use_gpu)
            if room is not None and sharding != "replicated":
                size = weights_bytes(
                    backbone, dtype=weights_dtype(chosen.recipe.precision, "cuda" if use_gpu else "cpu")
                )
                least = least_workers(weights_bytes=size, free_bytes=room)
                if least > 1:
                    require_shareable(chosen.recipe)
                wait_for(max(least, workers_per_cell or 1))
            nodes = ray_cluster.node_sizes()
            shape = plan_cells(
                num_jobs=len(pending),
                num_cpus=max(1, sum(node.cpus for node in nodes)),
                num_gpus=sum(node.gpus for node in nodes) if use_gpu else 0,
                cells=max_cells,
                workers_per_cell=workers_per_cell,
                lanes=lanes,
                least_workers=least,
                cpus_at_most=cpus_on_one_node(nodes, use_gpu=use_gpu),
            )
            bundle = ray_cluster.worker_bundle(cpus=shape.cpus_per_worker, use_gpu=use_gpu)
            say(
                f"cells of {shape.num_workers} workers with {shape.lanes} lanes each, {shape.cpus_per_worker} threads a "
                "worker"
            )
            held_s = lease_for(len(pending)) if lease_s is None else lease_s
            settings = WorkerSettings(
                lanes=shape.lanes,
                lanes_per_pack=lanes_per_pack,
                # By all concepts, finished ones too: a run that goes on computes as it began.
                compiled=compiling_pays(
                    num_concepts=len(records), steps=chosen.recipe.steps, num_workers=workers_per_cell or 1
                )
                if compiled is None
                else compiled,
                checkpoint_s=checkpoint_for(held_s) if checkpoint_s is None else checkpoint_s,
                lease_s=held_s,
                heartbeat_s=heartbeat_for(held_s),
                stop_at_s=over_s,
                track=track,
            )

            def run_cell(name: str, num_workers: int) -> None:
                ray_cluster.run_cell(
                    ray_cluster.CellConfig(
                        name=name,
                        store=url,
                        backbone=chosen.name,
                        recipe=chosen.recipe,
                        num_workers=num_workers,
                        sharding=sharding,
                        cpus_per_worker=shape.cpus_per_worker,
                        use_gpu=shape.use_gpu,
                        max_failures=max_failures,
                        worker=settings,
                    )
                )

            fleet = CellFleet(
                f"driver-{secrets.token_hex(4)}",
                plan=FleetPlan(
                    pool=pending[0].identity.pool,
                    workers_per_cell=shape.num_workers,
                    needs_whole_cells=least > 1 or sharding in ("zero3", "fsdp2"),
                    lanes=shape.lanes,
                    max_cells=max_cells,
                    priority=priority,
                    max_failures=max_failures,
                ),
                queue=queue,
                control=FarmControl(opened),
                registry=DriverRegistry(opened, clock=clock),
                capacity=lambda: places_for(shape, ray_cluster.node_sizes()),
                ask=partial(ray_cluster.ask_for_nodes, bundle),
                run_cell=run_cell,
                clock=clock,
                metrics=ray_cluster.RayMetrics(),
            )
            own = OwnJobs(queue, [record.job_id for record in pending])
            with showing_progress(queue, job_ids, clock):
                fleet.run(is_over=lambda: (over_s is not None and clock.now_s() >= over_s) or own.are_finished())
        # What was learned is what the store says, whatever the cell reported.
        records = outcome(records, queue=queue)
    except OmniFarmError as error:
        people.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(2) from error
    summarise(records, took_s=clock.monotonic_s() - began_s, as_json=json)
    if any(record.state is not JobState.COMMITTED for record in records):
        raise typer.Exit(1)


def _number_of_cells(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"--cells must be auto or a number of at least 1, found {text!r}")
    return int(text)


if __name__ == "__main__":
    typer.run(main)
