"""The demo's conductor: cluster, job, server, trials, page; stops what it started, also on Ctrl-C."""

import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from omnifarm.cli.demo_client import DemoClient
from omnifarm.cli.demo_page import write_page
from omnifarm.cli.demo_trials import TRIALS_FILE, Trials, default_trials, read_trials
from omnifarm.cli.local_cluster import LocalCluster, end_processes, free_port, local_cluster, ray_program
from omnifarm.cli.output import people
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError, FarmError, ServingError
from omnifarm.store.open import open_store

_SERVE_TIMEOUT_S = 180.0


def run_demo(out: Path, *, concepts: str | None, seed: int, steps: int | None, backbone: str) -> dict[str, Any]:
    """Learn concepts by a Ray job on a local cluster, use them over HTTP, and write the page.

    Args:
        out: Folder for `index.html`, `summary.json`, the pictures and the store; emptied first.
        concepts: Folder with concept folders, or None for held-out concepts of the drawn world.
        seed: Which drawn concepts.
        steps: Training steps per concept; None for the backbone's own recipe.
        backbone: `miniature`, a checkpoint folder or a hub id.

    Returns:
        The summary, as written to `summary.json`.

    Raises:
        ConfigError: Not run from a checkout, or `out` holds something that is not an earlier demo.
        FarmError: The cluster or the job failed.
        ServingError: The server did not come up or refused a request.
    """
    checkout = Path.cwd()
    if not (checkout / "jobs" / "train_concepts.py").is_file():
        raise ConfigError(
            f"expected a checkout of OmniFarm, found no jobs/train_concepts.py in {checkout}; run from its folder"
        )
    out = out.resolve()
    _make_room(out)
    timings: dict[str, float] = {}
    store = out / "store"
    with _timed(timings, "total_s"):
        source = Path(concepts).resolve() if concepts else _draw_concepts(out / "concepts", seed=seed)
        with _timed(timings, "start_cluster_s"), people.status("starting a local Ray cluster"):
            stack = contextlib.ExitStack()
            cluster = stack.enter_context(local_cluster(num_cpus=max(2, os.cpu_count() or 2)))
        with stack:
            people.print(f"cluster ready; its dashboard is {cluster.dashboard}")
            with _timed(timings, "train_s"):
                _submit_job(cluster, source=source, store=store, steps=steps, backbone=backbone, checkout=checkout)
            with _timed(timings, "start_server_s"):
                url = stack.enter_context(_server(cluster, store=store, backbone=backbone, checkout=checkout))
            with _timed(timings, "use_s"):
                results = _use(url, source=source, store=store, out=out)
    summary: dict[str, Any] = {
        "backbone": backbone,
        "hardware": f"{os.cpu_count()} x {_processor()}",
        "commit": _commit(checkout),
        "created": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "timings": {name: round(seconds, 1) for name, seconds in timings.items()},
        "totals": _totals(results),
        "concepts": results,
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
    write_page(summary, folder=out)
    for name, value in summary["totals"].items():
        people.print(f"  {name}: {value}")
    return summary


def _make_room(out: Path) -> None:
    """Empty `out`, unless it holds something this program did not write."""
    if out.exists() and any(out.iterdir()) and not (out / ".omnifarm-demo").exists():
        raise ConfigError(f"expected {out} to be empty or an earlier demo, found other files; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / ".omnifarm-demo").touch()


def _draw_concepts(folder: Path, *, seed: int) -> Path:
    from omnifarm.miniature.benchmark import write_concept_folders

    names = write_concept_folders(folder, seed=seed, num_persons=3, num_pets=3, num_objects=2)
    people.print(f"drew {len(names)} concepts that the miniature has never seen: {', '.join(names)}")
    return folder


def _submit_job(
    cluster: LocalCluster, *, source: Path, store: Path, steps: int | None, backbone: str, checkout: Path
) -> None:
    """Run the training job and show its log."""
    job = ["python", "jobs/train_concepts.py", "--concepts", str(source), "--store", str(store), "--backbone", backbone]
    if steps is not None:
        job += ["--steps", str(steps)]
    command = ray_program("job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--", *job)
    code = subprocess.call(command, env=cluster.environment, cwd=checkout, stdout=sys.stderr)
    if code != 0:
        raise FarmError(f"expected the training job to succeed, found exit code {code}; its log stands above")


@contextlib.contextmanager
def _server(cluster: LocalCluster, *, store: Path, backbone: str, checkout: Path) -> Iterator[str]:
    """Serve the store on a free loopback port for the length of a `with` block."""
    port = free_port()
    environment = {
        **cluster.environment,
        "OMNIFARM_STORE": str(store),
        "OMNIFARM_BACKBONE": backbone,
        "OMNIFARM_ACCESS": "owner",
        "OMNIFARM_TRAIN": "false",
        "PYTHONPATH": str(checkout),
    }
    serve = [sys.executable, "-m", "ray.serve.scripts"]
    log = cluster.folder / "serve.log"
    with log.open("wb") as sink:
        start = [*serve, "start", "--address", cluster.address, "--http-host", "127.0.0.1", "--http-port", str(port)]
        subprocess.run(start, env=environment, cwd=checkout, stdout=sink, stderr=subprocess.STDOUT, check=False)
        run = [*serve, "run", "serve.app:app", "--address", cluster.address, "--working-dir", "."]
        process = subprocess.Popen(run, env=environment, cwd=checkout, stdout=sink, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        with people.status("starting the server"):
            _wait_for_server(url, process=process, log=log)
        yield url
    finally:
        end_processes([psutil.Process(process.pid)] if process.poll() is None else [])


def _wait_for_server(url: str, *, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _SERVE_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=5.0).status_code == 200:
                return
        time.sleep(0.5)
    raise ServingError(
        f"expected the server at {url} within {_SERVE_TIMEOUT_S:.0f} s, found none; "
        f"the end of its log:\n{log.read_text(errors='replace')[-1500:]}"
    )


def _use(url: str, *, source: Path, store: Path, out: Path) -> list[dict[str, Any]]:
    """Try everything on every concept that was learned."""
    loaded = load_concepts(str(source))
    specs = [spec for _, spec in loaded if isinstance(spec, ConceptSpec)]
    for name, problem in loaded:
        if isinstance(problem, ConceptError):
            people.print(f"[yellow]{name} was not learned:[/] {problem}")
    photos = {spec.name: [source / image.path for image in spec.images] for spec in specs}
    repository = ConceptRepository(open_store(str(store)))
    plans = [_trials(spec, source=source, photos=photos) for spec in specs]
    client = DemoClient(url, folder=out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with contextlib.closing(client), Progress(*columns, console=people) as progress:
        bar = progress.add_task("asking, drawing, editing", total=sum(plan.num_requests for plan in plans))
        for spec, plan in zip(specs, plans, strict=True):
            progress.update(bar, description=f"asking, drawing, editing {spec.identifier}")
            outcome = client.run(plan, on_trial=lambda: progress.advance(bar))
            manifest = repository.latest(spec.name)
            results.append(
                {
                    "identifier": spec.identifier,
                    "class_noun": spec.class_noun,
                    "info": spec.info,
                    "extra_info": list(spec.extra_info),
                    "photos": [client.keep(path) for path in photos[spec.name]],
                    "steps": manifest.recipe["steps"],
                    "train_s": manifest.train_s,
                    "losses": _curves(manifest.losses),
                    **outcome,
                }
            )
    return results


def _trials(spec: ConceptSpec, *, source: Path, photos: dict[str, list[Path]]) -> Trials:
    folder = source / spec.name if (source / spec.name).is_dir() else source
    if (folder / TRIALS_FILE).is_file():
        return read_trials(folder, name=spec.name)
    strangers = [paths[0] for name, paths in photos.items() if name != spec.name]
    return default_trials(spec, photo=photos[spec.name][0], strangers=strangers)


def _curves(losses: Mapping[str, Any]) -> dict[str, list[list[float]]]:
    """Turn a manifest's columns into one list of [step, loss] for each kind of task that had samples."""
    names = {"text": "understanding", "image": "generation", "edit": "editing"}
    return {
        short: [[step, value] for step, value in zip(losses["step"], losses[column], strict=True) if value is not None]
        for short, column in names.items()
    }


def _totals(results: list[dict[str, Any]]) -> dict[str, str]:
    """Count right answers by kind."""
    totals = {}
    for kind in ("recognition", "vqa", "fact", "taught"):
        judged = [
            answer["correct"]
            for result in results
            for answer in result["answers"]
            if answer["kind"] == kind and answer["correct"] is not None
        ]
        if judged:
            totals[f"{kind} answers right"] = f"{sum(judged)} of {len(judged)}"
    totals["drawings"] = str(sum(len(result["drawings"]) for result in results))
    totals["edits"] = str(sum(len(result["edits"]) for result in results))
    return totals


@contextlib.contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        timings[name] = time.monotonic() - started


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
