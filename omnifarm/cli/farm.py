"""`omnifarm farm`: see what the farm is doing, tell it what to do, and prove that it loses nothing."""

import json as json_module
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from omnifarm.cli.output import Json, people, print_json, results
from omnifarm.errors import ConfigError

if TYPE_CHECKING:
    from omnifarm.farm.job import JobRecord
    from omnifarm.farm.queue import JobQueue

app = typer.Typer(no_args_is_help=True)
StoreUrl = Annotated[
    str, typer.Option("--store", help="s3://bucket/prefix or a local folder.", envvar="OMNIFARM_STORE")
]
Which = Annotated[list[str] | None, typer.Argument(help="Concept names or job ids.")]


@app.callback()
def farm() -> None:
    """See what the farm is doing, tell it what to do, and prove that it loses nothing."""


@app.command()
def status(store: StoreUrl, json: Json = False) -> None:
    """List every job: its state, step, attempts and, if it failed, why. Reads every record.

    Records that cannot be read are counted on standard error, each with its key and the reason.
    """
    from omnifarm.farm.records import record_key

    queue = _queue(store)
    records = queue.list()
    if unreadable := queue.records.unreadable:
        people.print(f"{len(unreadable)} records could not be read, so their jobs are missing here:", style="red")
        for job_id, reason in sorted(unreadable.items()):
            people.print(f"{record_key(job_id)}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if json:
        print_json([record.to_json() for record in records])
        return
    results.print(_table(records))


@app.command()
def watch(
    store: StoreUrl,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    rows: Annotated[int, typer.Option(min=0, help="Most jobs in training shown one by one.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON for every move and every look.")] = False,
) -> None:
    """Show the farm live until its jobs are finished: totals, rate, time left, and what is in training.

    With --json one line is one event: `job_running`, `job_committed` and so on for a job whose state has changed since
    the last look, and `totals` after each look.

    A look costs one request per thousand jobs and one per job in training, however long the queue is. Jobs whose record
    is found unreadable are left out and named on standard error, each once.
    """
    from rich.live import Live

    from omnifarm.cli.job_progress import say_unreadable
    from omnifarm.clock import SystemClock
    from omnifarm.farm.overview import StateChanges, glance, steps_of_one
    from omnifarm.farm.progress import ProgressMeter

    queue, clock = _queue(store), SystemClock()
    meter, changes, named = ProgressMeter(clock), StateChanges(queue), set[str]()
    num_steps = steps_of_one(queue, queue.records.ids())
    with Live(console=people, auto_refresh=False, transient=json) as live:
        while True:
            seen = glance(queue)
            say_unreadable(queue, said=named)
            look = meter.glance(seen, num_steps=num_steps)
            if json:
                for record in changes.look(seen):
                    print(json_module.dumps(_event(record)), flush=True)
                totals = {**seen.to_json(), "steps_per_s": look.steps_per_s, "left_s": look.left_s}
                print(json_module.dumps({"event": "totals", **totals}), flush=True)
            else:
                table = _table(sorted(seen.held, key=lambda record: record.name)[:rows])
                table.title = f"{look.line()}; {seen.ready} ready, {len(seen.held)} held, {seen.resting} resting"
                live.update(table, refresh=True)
            if look.is_finished:
                return
            clock.sleep_s(every)


@app.command()
def retry(store: StoreUrl, which: Which = None, everything: Annotated[bool, typer.Option("--all")] = False) -> None:
    """Queue failed or cancelled jobs again, with their strikes forgotten. Repeat it if it was broken off."""
    from omnifarm.farm.job import JobState

    queue = _queue(store)
    records = _chosen(queue, which, everything=everything)
    for record in records:
        # Queued ones, too: where an earlier try was broken off, they are queued and no worker can find them.
        if record.state in (JobState.FAILED, JobState.CANCELLED, JobState.QUEUED):
            people.print(f"{escape(record.name)}: {queue.retry(record.job_id).state.value}")


@app.command()
def cancel(store: StoreUrl, which: Which = None, everything: Annotated[bool, typer.Option("--all")] = False) -> None:
    """Call unfinished jobs off and erase their checkpoints; a worker that trains one lets it go at its next heartbeat."""
    from omnifarm.farm.erasure import call_off
    from omnifarm.store.open import open_store

    opened, queue = open_store(store), _queue(store)
    for record in _chosen(queue, which, everything=everything):
        if not record.state.is_finished:
            state = call_off(record.job_id, store=opened, queue=queue).state
            people.print(f"{escape(record.name)}: {state.value}")


@app.command()
def drain(
    store: StoreUrl,
    now: Annotated[bool, typer.Option("--now", help="Save and give back what is in training, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Take the order back.")] = False,
) -> None:
    """Let workers finish what they have and take nothing new, until `--resume`."""
    from omnifarm.farm.control import FarmControl, Order
    from omnifarm.store.open import open_store

    control = FarmControl(open_store(store))
    if resume:
        control.resume()
        people.print("workers lease again")
        return
    control.order(Order.STOP if now else Order.DRAIN)
    people.print("workers " + ("save, give back and leave" if now else "finish what they have and leave"))


@app.command()
def gc(
    store: StoreUrl,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    json: Json = False,
) -> None:
    """Remove what nothing refers to, and file again what a crash left unfiled. Reads every record."""
    from omnifarm.farm.garbage import collect_garbage
    from omnifarm.store.open import open_store

    report = collect_garbage(open_store(store), queue=_queue(store), dry_run=dry_run)
    if json:
        print_json(report.to_json())
        return
    for name, keys in report.to_json().items():
        people.print(f"{name}: {len(keys)}")


@app.command()
def chaos(
    seed: Annotated[int, typer.Option(help="Chooses what fails when.")] = 0,
    concepts: Annotated[int, typer.Option(min=1, help="Drawn concepts to learn.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Steps per concept.")] = 60,
    data: Annotated[str | None, typer.Option(help="Folder of concept folders instead of drawn ones.")] = None,
    backbone: Annotated[str, typer.Option(help="miniature or a checkpoint folder.")] = "miniature",
    recipe: Annotated[str, typer.Option(help="Recipe settings as JSON.")] = '{"batch_size": 2}',
    fault: Annotated[list[str] | None, typer.Option(help="Only this fault; may be repeated.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep stores and logs in this empty folder.")] = None,
    json: Json = False,
) -> None:
    """Learn concepts on several nodes and a real S3 server while workers, nodes, drivers and the server are killed.

    Exit code 1 unless every concept is committed exactly once, nothing is torn, and all soft tokens are bit for bit
    those of an undisturbed run.
    """
    from omnifarm.cli.farm_chaos import FAULTS, ChaosConfig, is_passed, run_chaos
    from omnifarm.miniature.benchmark import write_concept_folders

    if unknown := sorted(set(fault or ()) - set(FAULTS)):
        raise ConfigError(f"no fault is named {', '.join(unknown)}; there are: {', '.join(FAULTS)}")
    faults = tuple(fault or FAULTS)
    with tempfile.TemporaryDirectory(prefix="omf-chaos-", ignore_cleanup_errors=True) as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"expected an empty folder for --keep, found files in {folder}")
        if data is None:
            data = str(folder / "concepts")
            thirds = [concepts // 3 + (part < concepts % 3) for part in range(3)]
            write_concept_folders(Path(data), num_persons=thirds[0], num_pets=thirds[1], num_objects=thirds[2])
        config = ChaosConfig(
            concepts=os.path.abspath(data), backbone=backbone, steps=steps, recipe=recipe, seed=seed, faults=faults
        )
        verdict = run_chaos(config, folder=folder.resolve(), checkout=Path.cwd())
    if json:
        print_json(verdict)
    else:
        for name, value in verdict.items():
            results.print(f"{name}: {value}")
    if not is_passed(verdict, num_faults=len(faults)):
        raise typer.Exit(1)


@app.command()
def simulate(
    concepts: Annotated[int, typer.Option(min=1, help="Concepts queued at the start.")] = 2_000,
    gpus: Annotated[int, typer.Option(min=8, help="Devices, in nodes of 8.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Steps per concept.")] = 2_000,
    step_s: Annotated[
        float,
        typer.Option(
            min=0.001,
            help="Seconds of one step of a device with 8 lanes: an assumption. `omnifarm perf train --concepts 8 --json` "
            "measures it where it runs (step_s).",
        ),
    ] = 1.0,
    photos: Annotated[int, typer.Option(min=1, help="Pictures of a concept.")] = 10,
    mtbf_h: Annotated[float, typer.Option(min=1, help="Mean device hours between failures.")] = 50_000.0,
    preemption_h: Annotated[float, typer.Option(min=0.1, help="Mean hours until a spot node is taken away.")] = 24.0,
    lease_s: Annotated[
        float | None, typer.Option(help="As of `train_concepts.py`; default: what it gives so many concepts.")
    ] = None,
    heartbeat_s: Annotated[
        float | None, typer.Option(help="Between renewals; default: what the lease asks for.")
    ] = None,
    checkpoint_s: Annotated[
        float | None, typer.Option(help="As of `train_concepts.py`; default: what the lease asks for.")
    ] = None,
    min_utilisation: Annotated[float, typer.Option(min=0, max=1, help="Least share of useful device time.")] = 0.95,
    max_requests: Annotated[float, typer.Option(min=0, help="Most requests a concept.")] = 300.0,
    max_key_per_s: Annotated[
        float, typer.Option(min=0, help="Most requests a second on one key, or one listed prefix, on average.")
    ] = 100.0,
    seed: Annotated[int, typer.Option(help="Of all chance.")] = 0,
    json: Json = False,
) -> None:
    """Run the farm's queue, planner and policies under a simulated clock, with failures and spot pre-emptions.

    Exit code 1 unless every concept is committed exactly once, devices are used well, and neither requests in all nor
    those on one key are too many; which bound is broken is said.
    """
    from rich.progress import Progress

    from omnifarm.farm.planner import MAX_LANES
    from omnifarm.farm.simulation import Simulation
    from omnifarm.farm.simulation_config import SimulationConfig
    from omnifarm.farm.worker_settings import WorkerSettings, checkpoint_for, heartbeat_for, lease_for

    lease_s = lease_s or lease_for(concepts)
    worker = WorkerSettings(
        lanes=MAX_LANES,
        lease_s=lease_s,
        heartbeat_s=heartbeat_s or heartbeat_for(lease_s),
        checkpoint_s=checkpoint_s or checkpoint_for(lease_s),
    )
    config = SimulationConfig(
        concepts=concepts,
        gpus=gpus,
        steps=steps,
        photos=photos,
        step_s=step_s,
        mtbf_h=mtbf_h,
        preemption_h=preemption_h,
        worker=worker,
        seed=seed,
    )
    with Progress(console=people) as bar:
        task = bar.add_task("committed", total=concepts)
        report = Simulation(config, progress=lambda done: bar.update(task, completed=done)).run()
    if json:
        print_json(report)
    else:
        for name, value in report.items():
            results.print(f"{name}: {value}")
    broken = _broken(report, min_utilisation=min_utilisation, max_requests=max_requests, max_key_per_s=max_key_per_s)
    for line in broken:
        people.print(line, style="red")
    if broken:
        raise typer.Exit(1)


def _broken(
    report: Mapping[str, Any], *, min_utilisation: float, max_requests: float, max_key_per_s: float
) -> list[str]:
    """Return what a simulated farm does not hold, one line each."""
    concepts, busiest = report["concepts"], report["busiest_shared_key"]
    rows = [
        (report["committed"] == concepts, f"every one of {concepts} concepts committed", report["committed"]),
        (not report["committed_twice"], "none committed twice", report["committed_twice"]),
        (
            report["utilisation"] >= min_utilisation,
            f"a utilisation of at least {min_utilisation}",
            report["utilisation"],
        ),
        (
            report["requests_per_concept"] <= max_requests,
            f"at most {max_requests:g} requests a concept",
            f"{report['requests_per_concept']}: a longer lease needs fewer (--lease-s)",
        ),
        (
            busiest["per_s"] <= max_key_per_s,
            f"at most {max_key_per_s:g} requests a second on one key",
            f"{busiest['per_s']} on {busiest['key']}",
        ),
    ]
    return [f"expected {what}, found {found}" for is_held, what, found in rows if not is_held]


def _queue(store: str) -> "JobQueue":
    from omnifarm.clock import SystemClock
    from omnifarm.farm.queue import JobQueue
    from omnifarm.store.open import open_store

    return JobQueue(open_store(store), clock=SystemClock())


def _chosen(queue: "JobQueue", which: Sequence[str] | None, *, everything: bool) -> "list[JobRecord]":
    if everything == bool(which):
        raise ConfigError("name the concepts or jobs, or give --all")
    records = queue.list()
    if everything:
        return records
    wanted = set(which or ())
    found = [record for record in records if wanted & {record.name, record.job_id}]
    if missing := wanted - {name for record in found for name in (record.name, record.job_id)}:
        raise ConfigError(f"no job named {', '.join(sorted(missing))} in this store; see `omnifarm farm status`")
    return found


def _event(record: "JobRecord") -> dict[str, object]:
    return {
        "event": f"job_{record.state.value}",
        "job_id": record.job_id,
        "concept": record.name,
        "worker": None if record.lease is None else record.lease.worker,
        "step": record.step,
        "num_steps": record.num_steps,
        "attempts": record.attempts,
        "error": (record.error or "").partition("\n")[0] or None,
    }


def _table(records: "Sequence[JobRecord]") -> Table:
    table = Table("concept", "state", "step", "attempts", "reason", box=None)
    for record in records:
        table.add_row(
            escape(record.name),
            record.state.value,
            f"{record.step}/{record.num_steps}",
            str(record.attempts),
            escape((record.error or "").partition("\n")[0]),
        )
    return table
