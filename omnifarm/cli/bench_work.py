"""The work of a benchmark run, in pieces that travel as plain values: learn a set of concepts, ask a share of them.

`LocalWork` does it in processes of this machine; a cluster's version stands in `jobs/run_benchmark.py`. Both only
start the functions below, which go on from whatever the store already holds.
"""

import multiprocessing
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from omnifarm.allocator import keep_freed_memory
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.bench.asking import ask_all
from omnifarm.bench.data.load import BenchData, load_benchmark
from omnifarm.bench.judges.chat import ChatEndpoint, ChatSettings
from omnifarm.bench.others import OtherModel
from omnifarm.bench.plan import RunPlan
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.rows import ROWS, Row
from omnifarm.bench.system import System
from omnifarm.cli.bench_head import HeadedSystem
from omnifarm.cli.bench_learning import learn
from omnifarm.cli.bench_lora import LoraSystem
from omnifarm.cli.bench_others import EndpointSystem, LocalModelSystem
from omnifarm.cli.bench_stages import StagedSystem
from omnifarm.cli.bench_systems import LearnedSystem, PromptedSystem, ShuffledSystem
from omnifarm.clock import SystemClock
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.farm.worker_process import run_worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.base import Store
from omnifarm.store.open import open_store
from omnifarm.training.compiling import compiling_pays
from omnifarm.training.precision import weights_dtype

LANES = 4
"""Concepts a worker trains side by side, each in a forward of its own: what is learned depends neither on the others, nor
on who does the work, nor on interruptions."""
OTHERS_KEY = "OMNIFARM_OTHERS_KEY"
"""Environment variable with the API key of other models."""


class Work(Protocol):
    """Where the work is done."""

    def train(self, *, store_url: str, backbone: str, num_jobs: int, recipe: TrainingRecipe) -> None:
        """Finish the jobs of a store, `num_jobs` of one recipe in all; returns when each is committed or failed."""

    def each(self, do: Callable[[Mapping[str, Any]], object], shares: Sequence[Mapping[str, Any]]) -> None:
        """Run `do` (`learn_share` or `ask_share`) on each of the shares."""

    @property
    def num_workers(self) -> int:
        """Processes that work at once."""


class LocalWork:
    """Work in processes of this machine; one worker works in this very process.

    Args:
        workers: Processes.
    """

    def __init__(self, *, workers: int) -> None:
        self._workers = workers

    @property
    def num_workers(self) -> int:
        """Processes that work at once."""
        return self._workers

    def train(self, *, store_url: str, backbone: str, num_jobs: int, recipe: TrainingRecipe) -> None:
        """See `Work.train`."""
        # A worker trains several lanes at once, so few jobs need few workers.
        workers = min(self._workers, -(-num_jobs // 2))
        values = {
            "store": store_url,
            "backbone": backbone,
            "recipe": recipe.to_json(),
            "compiled": compiling_pays(num_concepts=num_jobs, steps=recipe.steps, num_workers=workers),
        }
        self.each(train_share, [{**values, "threads": self._workers // workers}] * workers)

    def each(self, do: Callable[[Mapping[str, Any]], object], shares: Sequence[Mapping[str, Any]]) -> None:
        """See `Work.each`."""
        threads = max(1, len(os.sched_getaffinity(0)) // self._workers)
        shares = [{"threads": threads, **share} for share in shares]
        if self._workers == 1:
            for share in shares:
                do(share)
            return
        with ProcessPoolExecutor(self._workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for _ in pool.map(do, shares):
                pass


def submit(data: str, *, store: Store, backbone: Backbone, concepts: Sequence[str]) -> list[str]:
    """Write the job records of a training; return the ids of those that are not finished."""
    records = submit_concepts(data, queue=JobQueue(store, clock=SystemClock()), backbone=backbone, only=concepts)
    return [record.job_id for record in records if not record.state.is_finished]


def train_share(values: Mapping[str, Any]) -> None:
    """Work as one of the workers of a training until its jobs are finished."""
    _use_threads(values.get("threads"))
    run_worker(
        f"bench-{uuid.uuid4().hex[:8]}",
        store_url=values["store"],
        backbone=values["backbone"],
        recipe=TrainingRecipe.from_json(values["recipe"]),
        settings=WorkerSettings(lanes=LANES, poll_s=0.2, compiled=values["compiled"]),
    )


def learn_share(values: Mapping[str, Any]) -> None:
    """Learn some concepts of a row that the farm does not learn; what is committed stays.

    Args:
        values: `data` (URL), `backbone`, `row`, `recipe` (JSON), `concepts`, `store` (URL of the training's store),
            and optionally `device` and `threads`.
    """
    _use_threads(values.get("threads"))
    recipe = TrainingRecipe.from_json(values["recipe"])
    specs = dict(load_concepts(values["data"]))
    device = values.get("device", "cpu")
    loaded = load_backbone(values["backbone"], dtype=weights_dtype(recipe.precision, device), device=device)
    learn(
        ROWS[values["row"]],
        [spec for name in values["concepts"] if isinstance(spec := specs[name], ConceptSpec)],
        loaded=loaded,
        store=open_store(values["store"]),
        recipe=recipe,
        lanes=1,
    )


def ask_share(values: Mapping[str, Any]) -> int:
    """Ask one row about some concepts, whatever is missing; return how many items were asked.

    Args:
        values: `plan` (JSON), `data` (URL), `row`, `seed`, `concepts`, `store` (URL), `training` (key of the
            training's store, empty for rows that learn nothing), `at_once`, `retry_failed`, and optionally `precision`
            (in which concepts were learned), `device` and `threads`.
    """
    _use_threads(values.get("threads"))
    plan = RunPlan.from_json(values["plan"])
    row, store, device = plan.row(values["row"]), open_store(values["store"]), values.get("device", "cpu")
    system: System
    if row.kind in ("endpoint", "local"):
        system = other_system(plan.other(row), store=store, device=device, at_once=values["at_once"])
    else:
        keep_freed_memory()
        dtype = weights_dtype(values.get("precision", "bfloat16"), device)
        loaded = _loaded(plan.backbone, dtype, device)
        system = system_of(row, loaded, training_url=_below(values["store"], values["training"]), seed=values["seed"])
    return ask_all(
        system,
        _data(values["data"], plan).benchmark,
        ReplyFile(store, prefix=plan.replies_key(row, seed=values["seed"])),
        tasks=row.tasks,
        base_seed=values["seed"],
        concepts=values["concepts"],
        at_once=values["at_once"],
        retry_failed=values["retry_failed"],
    )


def system_of(row: Row, loaded: LoadedBackbone, *, training_url: str, seed: int) -> System:
    """Return the system behind a row on our backbone."""
    if row.kind == "prompted":
        return PromptedSystem(loaded, row=row)
    store = open_store(training_url)
    if row.kind == "shuffled":
        return ShuffledSystem(loaded, store=store, row=row, seed=seed)
    systems: dict[str, Callable[..., System]] = {
        "staged": StagedSystem,
        "lora": LoraSystem,
        "headed": HeadedSystem,
        "learned": LearnedSystem,
    }
    return systems[row.kind](loaded, store=store, row=row)


def other_system(other: OtherModel, *, store: Store, device: str, at_once: int) -> System:
    """Return the system behind another model; an endpoint's key comes from the environment."""
    if not other.url:
        return LocalModelSystem(other.model, row=other.row(), device=device)
    settings = ChatSettings(model=other.model, base_url=other.url, concurrency=at_once)
    return EndpointSystem(ChatEndpoint(settings, api_key=os.environ.get(OTHERS_KEY, ""), store=store), row=other.row())


def _below(url: str, key: str) -> str:
    return f"{url.rstrip('/')}/{key}"


@lru_cache(maxsize=1)
def _loaded(backbone: str, dtype: torch.dtype, device: str) -> LoadedBackbone:
    return load_backbone(backbone, dtype=dtype, device=device)


@lru_cache(maxsize=2)
def _data_of(url: str, plan: str) -> BenchData:
    import json

    sizes = RunPlan.from_json(json.loads(plan)).sizes
    with tempfile.TemporaryDirectory() as scratch:
        return load_benchmark(url, sizes=sizes, scratch=Path(scratch))


def _data(url: str, plan: RunPlan) -> BenchData:
    import json

    return _data_of(url, json.dumps(plan.to_json(), sort_keys=True))


def _use_threads(number: int | None) -> None:
    if number is not None:
        torch.set_num_threads(number)
