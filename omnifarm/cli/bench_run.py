"""A whole benchmark run: data, training, asking, scoring, report. Each part goes on from what the store holds."""

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from omnifarm.backbone.weights import load_backbone, resolve_folder
from omnifarm.bench.data.load import BenchData, load_benchmark, with_gaps
from omnifarm.bench.judges.chat import ChatEndpoint, ChatSettings
from omnifarm.bench.judges.endpoint import EndpointJudge
from omnifarm.bench.judges.world import WorldJudge
from omnifarm.bench.metrics.aggregate import ConceptValue
from omnifarm.bench.metrics.encoders import CLIP, DINO, NotRun, open_clip, open_dino, open_efficientnet, open_minilm
from omnifarm.bench.metrics.faces import open_arcface, open_dlib
from omnifarm.bench.metrics.text import Protocol
from omnifarm.bench.plan import PREFIX, RunPlan
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.report.build import Evidence, write_report
from omnifarm.bench.rows import FARMED, OWN_LEARNING, Row
from omnifarm.bench.scoring import Scorers, score_real_images, score_row
from omnifarm.cli.bench_evidence import SHOWN, Learned, load_learned, looks_of
from omnifarm.cli.bench_learning import learned_seconds
from omnifarm.cli.bench_work import Work, ask_share, learn_share, submit
from omnifarm.cli.output import people
from omnifarm.cli.perf_train import hardware
from omnifarm.clock import SystemClock
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ConfigError, NotFoundError
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, inspect_backbone
from omnifarm.store.base import Store
from omnifarm.store.open import open_store


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringSettings:
    """How replies are scored; may change from one scoring of a run to the next."""

    protocol: Protocol = "strict"
    """`strict` or `compat`."""
    judge: ChatSettings | None = None
    """The model that grades; None takes the world's rules where they hold, and nothing elsewhere."""
    judge_key: str = field(default="", repr=False)
    """API key."""
    clip: str = CLIP
    """Folder or cached model."""
    dino: str = DINO
    """Folder or cached model."""
    arcface: str | None = None
    """Folder with `models/antelopev2`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A run that can be worked on."""

    plan: RunPlan
    """What it does."""
    store: Store
    """Where it is written."""
    store_url: str
    """As workers open it."""
    data: BenchData
    """What is asked; its URL is readable by every worker."""
    backbone: Backbone
    """What concepts are learned on."""
    training: Mapping[tuple[str, int], str]
    """(row, seed) to the key of the store with its artifacts; rows that learn nothing have none."""


def prepare(plan: RunPlan, *, store_url: str) -> Prepared:
    """Read the data and save the plan, or find that the run exists and has the same.

    Raises:
        ConfigError: A run of this name does something else.
        ConceptError: The data cannot be used.
    """
    store = open_store(store_url)
    # A benchmark teaches what its data say, to every row alike, and not what a backbone sees by itself.
    backbone = inspect_backbone(plan.backbone, overrides={"is_self_described": False, **plan.recipe})
    with tempfile.TemporaryDirectory() as scratch:
        data = with_gaps(load_benchmark(plan.data, sizes=plan.sizes, scratch=Path(scratch)))
        if data.drawn:
            data = _moved_to_store(data, plan, store=store, store_url=store_url)
    digest = data.benchmark.digest()
    saved = {"plan": plan.to_json(), "benchmark": digest, "backbone": backbone.fingerprint}
    key = f"{plan.folder}/plan.json"
    try:
        found = json.loads(store.get(key).data)
    except NotFoundError:
        store.put(key, json.dumps(saved, indent=1, sort_keys=True).encode())
    else:
        if different := sorted(name for name in saved if found.get(name) != json.loads(json.dumps(saved[name]))):
            raise ConfigError(
                f"run {plan.run} in {store.url} has another {' and '.join(different)} than asked for; "
                "give this one another --name"
            )
    training = {}
    for row in plan.chosen():
        for seed in plan.seeds:
            if row.kind in (*FARMED, *OWN_LEARNING):
                recipe = plan.recipe_of(row, backbone.recipe, seed=seed)
                training[row.key, seed] = plan.training_key(row, recipe, fingerprint=backbone.fingerprint, data=digest)
    return Prepared(plan=plan, store=store, store_url=store_url, data=data, backbone=backbone, training=training)


def carry_out(run: Prepared, work: Work, *, at_once: int = 1, retry_failed: bool = False) -> None:
    """Learn and ask, one seed after the other: a run that is cut short has whole tables of its first seeds."""
    for seed in run.plan.seeds:
        train(run, work, seed=seed)
        ask(run, work, seed=seed, at_once=at_once, retry_failed=retry_failed)


def train(run: Prepared, work: Work, *, seed: int) -> None:
    """Learn every concept for every row under one seed; rows of one recipe learn once."""
    names = [concept.name for concept in run.data.benchmark.concepts]
    done: set[str] = set()
    for row in run.plan.chosen():
        key = run.training.get((row.key, seed))
        if key is None or key in done:
            continue
        done.add(key)
        recipe = run.plan.recipe_of(row, run.backbone.recipe, seed=seed)
        url = f"{run.store_url.rstrip('/')}/{key}"
        store = open_store(url)
        if row.kind in OWN_LEARNING:
            _learn(run, work, row, recipe=recipe, url=url, names=names)
            continue
        backbone = Backbone(name=run.backbone.name, fingerprint=run.backbone.fingerprint, recipe=recipe)
        pending = submit(run.data.url, store=store, backbone=backbone, concepts=names)
        if pending:
            say(f"training {row.title}, seed {seed}: {len(pending)} concepts, {recipe.steps} steps each")
            work.train(store_url=url, backbone=backbone.name, num_jobs=len(names), recipe=recipe)
        for record in JobQueue(store, clock=SystemClock()).list(pending):
            if record.state is not JobState.COMMITTED:
                say(f"not learned: {record.name}: {record.error or record.state.value}")


def _learn(run: Prepared, work: Work, row: Row, *, recipe: TrainingRecipe, url: str, names: Sequence[str]) -> None:
    """Learn a row that the farm does not learn, in shares of concepts."""
    done = learned_seconds(row, store=open_store(url))
    missing = [name for name in names if name not in done]
    if not missing:
        return
    say(f"training {row.title}, seed {recipe.seed}: {len(missing)} concepts, {recipe.steps} steps each")
    values = {
        "data": run.data.url,
        "backbone": run.backbone.name,
        "row": row.key,
        "recipe": recipe.to_json(),
        "store": url,
    }
    shares = [missing[share :: work.num_workers] for share in range(work.num_workers)]
    work.each(learn_share, [{**values, "concepts": mine} for mine in shares if mine])


def ask(run: Prepared, work: Work, *, seed: int, at_once: int = 1, retry_failed: bool = False) -> None:
    """Ask every row everything under one seed, in shares of concepts, each with up to `at_once` items under way.

    What is on file is not asked again, but with `retry_failed` what has failed.
    """
    names = [concept.name for concept in run.data.benchmark.concepts]
    precision = run.backbone.recipe.with_overrides(run.plan.recipe).precision
    shares = []
    for row in run.plan.chosen():
        missing = _missing(run, row, seed, retry_failed=retry_failed)
        if not missing:
            continue
        say(f"asking {row.title}, seed {seed}: {sum(missing.values())} items")
        values = {
            "plan": run.plan.to_json(),
            "data": run.data.url,
            "row": row.key,
            "seed": seed,
            "store": run.store_url,
            "training": run.training.get((row.key, seed), ""),
            "at_once": at_once,
            "retry_failed": retry_failed,
            "precision": precision,
        }
        for share in range(work.num_workers):
            mine = [name for name in names[share :: work.num_workers] if missing.get(name)]
            shares += [{**values, "concepts": mine}] if mine else []
    if shares:
        work.each(ask_share, shares)


def score(run: Prepared, settings: ScoringSettings, *, command: str = "") -> dict[str, Any]:
    """Score everything on file and write the report; asks no system.

    Returns:
        The report as JSON values, with `folder`, the key it was written under.
    """
    began_s = time.monotonic()
    scorers = _scorers(run, settings)
    benchmark = run.data.benchmark
    values: list[ConceptValue] = []
    first = run.plan.seeds[0]
    values += score_real_images(benchmark, seed=first, scorers=scorers)
    for row in run.plan.chosen():
        for seed in run.plan.seeds:
            replies = ReplyFile(run.store, prefix=run.plan.replies_key(row, seed=seed))
            values += score_row(row, seed=seed, benchmark=benchmark, replies=replies, scorers=scorers)
            say(f"scored {row.title}, seed {seed}")
    learned = _learned(run)
    evidence = Evidence(
        plan=run.plan,
        benchmark=benchmark,
        store=run.store,
        values=values,
        reasons=scorers.reasons(),
        judge="" if isinstance(scorers.judge, NotRun) else scorers.judge.id,
        judge_report={} if isinstance(scorers.judge, NotRun) else scorers.judge.report(),
        protocol=settings.protocol,
        soft_tokens={row: {name: one.table().numpy() for name, one in found.items()} for row, found in learned.items()},
        looks=looks_of(learned, run.data, load_backbone(run.plan.backbone)) if learned else {},
        train_s=_train_s(run),
        about={**_about(run), "command": command, "scoring_s": round(time.monotonic() - began_s, 1)},
    )
    return write_report(evidence)


def say(text: str) -> None:
    """Tell people what is going on."""
    people.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {text}")


def _missing(run: Prepared, row: Row, seed: int, *, retry_failed: bool) -> dict[str, int]:
    done = ReplyFile(run.store, prefix=run.plan.replies_key(row, seed=seed)).done(with_failures=not retry_failed)
    items = [item for item in run.data.benchmark.items if item.task in row.tasks]
    missing: dict[str, int] = {}
    for item in items:
        if (item.concept, item.id) not in done:
            missing[item.concept] = missing.get(item.concept, 0) + 1
    return missing


def _moved_to_store(data: BenchData, plan: RunPlan, *, store: Store, store_url: str) -> BenchData:
    """Put the drawn world's folder where every worker can read it."""
    from dataclasses import replace

    key = f"{PREFIX}/data/{data.benchmark.digest()[:16]}"
    there = set(store.list(f"{key}/"))
    root = Path(data.url)
    for path in sorted(root.rglob("*")):
        name = f"{key}/{path.relative_to(root).as_posix()}"
        if path.is_file() and not path.name.startswith(".") and name not in there:
            store.put(name, path.read_bytes())
    url = f"{store_url.rstrip('/')}/{key}"
    moved = load_benchmark(url, sizes=plan.sizes, scratch=root)
    return replace(moved, drawn=data.drawn)


def _scorers(run: Prepared, settings: ScoringSettings) -> Scorers:
    world = _world_judge(run) if run.data.drawn else None
    judge: EndpointJudge | WorldJudge | NotRun
    concurrency = 1
    if settings.judge is not None:
        chat = ChatEndpoint(settings.judge, api_key=settings.judge_key, store=run.store)
        judge, concurrency = EndpointJudge(chat, protocol=settings.protocol), settings.judge.concurrency
    else:
        judge = world or NotRun(reason="no judge: give --judge MODEL (and --judge-url)")
    return Scorers(
        judge=judge,
        world=world,
        clip=open_clip(settings.clip, is_squeezed=settings.protocol == "compat"),
        dino=open_dino(settings.dino),
        arcface=open_arcface(settings.arcface),
        efficientnet=open_efficientnet(),
        dlib=open_dlib(),
        minilm=open_minilm(),
        protocol=settings.protocol,
        concurrency=concurrency,
    )


def _world_judge(run: Prepared) -> WorldJudge:
    from omnifarm.cli.miniature_systems import round_trip
    from omnifarm.miniature.judge import FILE, Judge

    folder = resolve_folder(run.plan.backbone)
    reader = Judge.load(folder if (folder / FILE).is_file() else resolve_folder("miniature"))
    loaded = load_backbone(run.plan.backbone)
    return WorldJudge(run.data.drawn, reader, round_trip=lambda picture: round_trip(loaded, picture))


def _learned(run: Prepared) -> Learned:
    """Return the soft tokens that the report shows, of the first seed."""
    places = {key: run.training.get((key, run.plan.seeds[0])) for key in SHOWN}
    repositories = {
        key: ConceptRepository(open_store(f"{run.store_url.rstrip('/')}/{place}"))
        for key, place in places.items()
        if place is not None
    }
    return load_learned(repositories, run.data, fingerprint=run.backbone.fingerprint)


def _train_s(run: Prepared) -> dict[str, float]:
    """Return row to seconds of training, all concepts and seeds; shared trainings count for each of their rows."""
    seconds: dict[str, float] = {}
    for (row, _), place in run.training.items():
        found = learned_seconds(run.plan.row(row), store=open_store(f"{run.store_url.rstrip('/')}/{place}"))
        seconds[row] = round(seconds.get(row, 0.0) + sum(found.values()), 1)
    return seconds


def _about(run: Prepared) -> dict[str, Any]:
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    machine = hardware(torch.get_num_threads())
    return {
        "hardware": f"{machine['cores']} cores of {machine['cpu']}"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "commit": git.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {name: version(name) for name in ("torch", "transformers", "numpy")},
        "backbone": run.plan.backbone,
        "fingerprint": run.backbone.fingerprint,
        "benchmark": run.data.benchmark.digest(),
        "recipe": run.backbone.recipe.to_json(),
    }
