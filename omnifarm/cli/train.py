"""`omnifarm train`: learn concepts in this process, without a cluster."""

import uuid
from typing import Annotated

import typer

from omnifarm.cli.output import Json, json_object, print_json, results

app = typer.Typer(no_args_is_help=True)


@app.callback()
def train() -> None:
    """Learn concepts in this process, without a cluster."""


@app.command()
def local(
    concepts: Annotated[str, typer.Option(help="A concept folder, a folder of them, a UnifyBench folder, or s3://...")],
    store: Annotated[str, typer.Option(help="Where records, checkpoints and artifacts go: a folder or s3://...")],
    backbone: Annotated[str, typer.Option(help="miniature, a checkpoint folder, or a Hugging Face id.")] = "miniature",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per concept; default: the backbone's recipe.")] = None,
    recipe: Annotated[str | None, typer.Option(help='More recipe settings as JSON, such as {"num_und": 8}.')] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this concept; may be repeated.")] = None,
    lanes: Annotated[int, typer.Option(min=1, help="Concepts trained side by side.")] = 4,
    lanes_per_pack: Annotated[
        int,
        typer.Option(min=1, help="Lanes that share one forward; fewer need less memory."),
    ] = 4,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compiled/--eager",
            help="Compile first (needs a C++ compiler); default: where it pays in time. A run that was killed goes on to the "
            "same bits if this is the same: say it when it goes on with other concepts.",
        ),
    ] = None,
    track: Annotated[
        str | None, typer.Option(help="Where losses go besides the artifacts: mlflow, wandb or trackio.")
    ] = None,
    json: Json = False,
) -> None:
    """Learn every concept at a place with one worker; exit code 1 if any failed.

    The same records, checkpoints and artifacts as on a cluster: stop it and go on here or there, run it again and
    what is learned stays.
    """
    from omnifarm.cli.job_progress import announce, showing_progress, summarise
    from omnifarm.clock import SystemClock
    from omnifarm.farm.control import FarmControl
    from omnifarm.farm.job import JobState
    from omnifarm.farm.overview import outcome
    from omnifarm.farm.queue import JobQueue
    from omnifarm.farm.submission import inspect_backbone, submit_concepts
    from omnifarm.farm.tracking import open_tracker
    from omnifarm.farm.worker import Worker
    from omnifarm.farm.worker_settings import WorkerSettings
    from omnifarm.store.open import open_store
    from omnifarm.store.probe import probe_conditional_writes
    from omnifarm.training.compiling import compiling_pays, has_compiler
    from omnifarm.training.workbench import Workbench

    clock = SystemClock()
    began_s = clock.monotonic_s()
    opened = open_store(store)
    probe_conditional_writes(opened)
    queue = JobQueue(opened, clock=clock)
    overrides = {"steps": steps, **json_object(recipe, what="--recipe")}
    chosen = inspect_backbone(backbone, overrides=overrides)
    records = submit_concepts(concepts, queue=queue, backbone=chosen, only=only or ())
    job_ids = [record.job_id for record in records]
    announce(records, backbone=backbone, fingerprint=chosen.fingerprint, steps=chosen.recipe.steps)
    if any(not record.state.is_finished for record in records):
        FarmControl(opened).require_work(store=store)
        if compiled is None:
            # By all concepts, finished ones too: a run that goes on computes as it began.
            compiled = compiling_pays(num_concepts=len(records), steps=chosen.recipe.steps, num_workers=1)
        workbench = Workbench.open(
            chosen.name,
            precision=chosen.recipe.precision,
            device=device,
            lanes_per_pack=lanes_per_pack,
            store=opened,
            compiled=compiled and has_compiler(device),
        )
        with open_tracker(track) as tracker, showing_progress(queue, job_ids, clock):
            Worker(
                f"local-{uuid.uuid4().hex[:8]}",
                store=opened,
                workbench=workbench,
                recipe=chosen.recipe,
                settings=WorkerSettings(lanes=lanes, lanes_per_pack=lanes_per_pack, track=track),
                tracker=tracker,
            ).run()
    records = outcome(records, queue=queue)
    summarise(records, took_s=clock.monotonic_s() - began_s, as_json=json)
    if any(record.state is not JobState.COMMITTED for record in records):
        raise typer.Exit(1)


@app.command()
def plan(
    concepts: Annotated[str, typer.Option(help="Typical concepts: a folder of them, or s3://...")],
    backbone: Annotated[str, typer.Option(help="miniature, a checkpoint folder, or a Hugging Face id.")] = "miniature",
    num_concepts: Annotated[int | None, typer.Option(min=1, help="How many to plan for; default: those given.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps per concept; default: the backbone's recipe.")] = None,
    recipe: Annotated[str | None, typer.Option(help="More recipe settings as JSON.")] = None,
    lanes: Annotated[int, typer.Option(min=1, help="Concepts in one pack.")] = 4,
    devices: Annotated[int, typer.Option(min=1, help="Devices, each with packs of its own.")] = 1,
    price: Annotated[float, typer.Option(min=0, help="Price of one device for one hour, in your currency.")] = 0.0,
    flops_per_s: Annotated[
        float | None,
        typer.Option(
            help="Operations per second the device reaches in training; default: measured here, on a few steps."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to measure: cpu or cuda.")] = "cpu",
    compiled: Annotated[
        bool | None,
        typer.Option("--compiled/--eager", help="Measure compiled; default: where `train local` would compile."),
    ] = None,
    json: Json = False,
) -> None:
    """Predict time, memory and cost of learning many concepts, from counted operations and a measured rate."""
    import dataclasses

    from omnifarm.cli.train_plan import plan_training

    report = plan_training(
        concepts,
        backbone=backbone,
        overrides={"steps": steps, **json_object(recipe, what="--recipe")},
        num_concepts=num_concepts,
        lanes=lanes,
        devices=devices,
        price_per_hour=price,
        flops_per_s=flops_per_s,
        device=device,
        compiled=compiled,
    )
    wall_s = report.wall_s(devices=devices)
    if json:
        print_json({**dataclasses.asdict(report), "devices": devices, "wall_s": wall_s})
        return
    results.print(
        f"{report.num_concepts} concepts of {report.steps} steps, {report.lanes} in a pack of {report.step.num_tokens} tokens "
        f"({report.step.share_saved:.0%} saved by sharing), {report.step.flops / 1e9:.3g} GFLOP a step\n"
        f"at {report.flops_per_s / 1e9:.4g} GFLOP/s ({report.rate_from}): {wall_s:.0f} s on {devices} devices, of which "
        f"{report.opening_s:.0f} s before the first concept and {report.beginning_s:.1f} s before the first step of each, "
        f"as measured here; stepping takes {report.prediction.device_hours:.3g} device hours, cost {report.prediction.cost:.2f}, "
        f"{report.prediction.memory_bytes / 2**30:.2f} GiB a device"
    )
