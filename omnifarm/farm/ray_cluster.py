"""The one module that knows Ray: a cell is one long-lived Ray Train run whose workers run `farm/worker.py`.

Starting a Ray Train run costs many seconds, so a cell is started once and its workers pull concepts until none is
left, instead of one run per concept. A killed worker makes Ray start the cell's workers again; what they had leased
is leased again and goes on from its last checkpoint. `fit()` reports success when workers came back, whatever they
had been doing, so nothing here says what was learned: the caller reads that from the job records.
"""

import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
import ray.autoscaler.sdk
import ray.train
import ray.util.metrics
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ConfigError, FarmError
from omnifarm.farm.cells import worker_name
from omnifarm.farm.cluster_access import require_token
from omnifarm.farm.metrics import COUNTERS, GAUGES, HISTOGRAMS
from omnifarm.farm.planner import NodeSize
from omnifarm.farm.worker_process import run_worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.logs import configure
from omnifarm.training.sharding import SHARDINGS

_TIMEOUT_S = 300
_ASK_S = 20.0
"""Longest wait for GPUs to say how much memory they have."""
_SLICE = 0.01
"""Of a GPU, for asking it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellConfig:
    """A cell: how many workers, with what each, on which jobs."""

    store: str
    """URL of the store that holds job records, checkpoints and artifacts; readable from every node."""
    backbone: str
    """Name or folder of the backbone; readable from every node."""
    name: str
    """Its name, unique on the farm; by it the cell can be told to stop."""
    recipe: TrainingRecipe
    """How its concepts are learned; with the backbone it decides which jobs it works on."""
    num_workers: int = 1
    """Processes."""
    sharding: str = "auto"
    """How the backbone lies over them: a whole copy each ("replicated"), shares ("zero3", "fsdp2"), or by memory."""
    cpus_per_worker: int = 1
    """Logical CPUs of a worker; also its number of threads."""
    use_gpu: bool = False
    """Whether every worker gets a GPU."""
    max_failures: int = 8
    """How often killed workers are replaced before the cell gives up."""
    worker: WorkerSettings = field(default_factory=WorkerSettings)
    """How a worker works."""

    def __post_init__(self) -> None:
        for name in ("num_workers", "cpus_per_worker"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cell: {name} must be at least 1, found {getattr(self, name)}")
        if self.max_failures < 0:
            raise ConfigError(f"cell: max_failures must be at least 0, found {self.max_failures}")
        if self.sharding not in ("auto", *SHARDINGS):
            raise ConfigError(f"cell: sharding must be auto or one of {', '.join(SHARDINGS)}, found {self.sharding!r}")


def connect() -> None:
    """Join the cluster named by RAY_ADDRESS, or start a private one on loopback. Safe to repeat.

    Raises:
        FarmError: Other machines can reach that cluster and it asks nobody for a token.
    """
    if ray.is_initialized():
        return
    # Without it Ray binds to the host's public address even when asked for loopback.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers politely take the lowest priority; on a shared machine a cell would hardly move.
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        require_token(address, os.environ)
        ray.init(log_to_driver=True)
    else:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        # Ray would otherwise write a token into the user's home, and every later cluster of theirs would demand it.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # Without a dashboard Ray Train complains once a second that it cannot query it; the records tell what matters.
        ray.init(address="local", include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)


def cluster_cpus() -> int:
    """Return the logical CPUs of the connected cluster (at least 1)."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]


def cluster_gpus() -> int:
    """Return the GPUs of the connected cluster."""
    return int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]


def node_sizes() -> list[NodeSize]:
    """Return what every living node of the connected cluster offers."""
    sizes = (node["Resources"] for node in _nodes())
    return [NodeSize(cpus=int(size.get("CPU", 0)), gpus=int(size.get("GPU", 0))) for size in sizes]


def worker_bundle(*, cpus: int, use_gpu: bool) -> dict[str, float]:
    """Return what one worker takes, in Ray's words."""
    return {"CPU": cpus, **({"GPU": 1} if use_gpu else {})}


def ask_for_nodes(bundle: Mapping[str, float], count: int) -> None:
    """Ask the cluster's autoscaler for nodes that hold a bundle so many times in all; without one nothing happens.

    The last word of anybody counts, for the whole cluster, and stands when its speaker is gone: take it back with 0.
    """
    try:
        ray.autoscaler.sdk.request_resources(bundles=[dict(bundle)] * count)
    except ray.exceptions.RayError as error:
        # Asked again soon; cells that run need nobody's answer.
        logging.getLogger(__name__).warning("nodes could not be asked for: %s", error)


def device_bytes(*, use_gpu: bool) -> int | None:
    """Return the memory that one worker's device has on the node with least of it.

    A node shares its memory among its CPUs; GPUs are asked, each node's first free one. None when no node can say: all
    GPUs are taken just now, for instance.

    Args:
        use_gpu: Whether workers get GPUs.
    """
    nodes = _nodes()
    if not use_gpu:
        found = [node["Resources"]["memory"] / node["Resources"]["CPU"] for node in nodes if _has_cpus(node)]
        return int(min(found)) if found else None
    ask = ray.remote(num_gpus=_SLICE, num_cpus=0, max_retries=0)(_gpu_bytes)
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
        if node["Resources"].get("GPU")
    ]
    told, silent = ray.wait(asked, num_returns=len(asked), timeout=_ASK_S)
    for reference in silent:
        ray.cancel(reference, force=True)
    answers = [answer for answer in map(_told, told) if answer]
    return min(answers) if answers else None


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _told(reference: Any) -> int | None:
    try:
        return int(ray.get(reference) or 0)
    except ray.exceptions.RayError as error:
        # Such as a GPU that fails, or a node that went: those that answer decide.
        logging.getLogger(__name__).warning("a GPU could not be asked for its memory: %s", error)
        return None


def _has_cpus(node: Mapping[str, Any]) -> bool:
    return bool(node["Resources"].get("CPU") and node["Resources"].get("memory"))


def _gpu_bytes() -> int | None:
    return int(torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None


def run_cell(config: CellConfig) -> None:
    """Run a cell until its workers find nothing left to do or are told to stop. May be called from any thread.

    What became of its jobs stands in their records.

    Args:
        config: The cell.

    Raises:
        FarmError: Ray gave up on the cell: more workers died than `max_failures`, it could not be placed, or this machine has
            no room for the cell's notes.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="omf-cell-", ignore_cleanup_errors=True) as folder:
            _trainer(config, folder).fit()
    except Exception as error:
        raise FarmError(
            f"the cell ended before its jobs did: {error}; submit the same job again to go on from the checkpoints"
        ) from error


def _trainer(config: CellConfig, folder: str) -> TorchTrainer:
    return TorchTrainer(
        _work,
        train_loop_config=_to_plain(config),
        # A sharded cell gathers its weights in this group; the timeout is how long a lost worker stays unnoticed.
        torch_config=TorchConfig(backend="nccl" if config.use_gpu else "gloo", timeout_s=_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker=worker_bundle(cpus=config.cpus_per_worker, use_gpu=config.use_gpu),
        ),
        run_config=RunConfig(
            storage_path=folder, name="cell", failure_config=FailureConfig(max_failures=config.max_failures)
        ),
    )


def _work(values: Mapping[str, Any]) -> None:
    """Run one worker process; called by Ray in the worker."""
    configure(level="INFO")
    for noisy in ("ray.train", "httpx", "transformers"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    torch.set_num_threads(int(values["cpus_per_worker"]))
    context = ray.train.get_context()
    run_worker(
        worker_name(values["name"], context.get_world_rank()),
        store_url=values["store"],
        backbone=values["backbone"],
        cell=values["name"],
        metrics=RayMetrics(),
        recipe=TrainingRecipe.from_json(values["recipe"]),
        settings=WorkerSettings(**values["worker"]),
        device=str(ray.train.torch.get_device()) if values["use_gpu"] else "cpu",
        sharding=values["sharding"],
    )


def _to_plain(config: CellConfig) -> dict[str, Any]:
    # Plain values travel to workers whose code may be a newer checkout; a pickled class would not.
    return asdict(config)


class RayMetrics:
    """Numbers into Ray's own Prometheus endpoint, one per node, labelled by node and worker there."""

    def __init__(self) -> None:
        self._counters = {name: ray.util.metrics.Counter(name, text) for name, text in COUNTERS.items()}
        self._gauges = {name: ray.util.metrics.Gauge(name, text) for name, text in GAUGES.items()}
        bounds = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300]
        self._histograms = {
            name: ray.util.metrics.Histogram(name, text, boundaries=bounds) for name, text in HISTOGRAMS.items()
        }

    def count(self, name: str, value: float = 1.0) -> None:
        """See `Metrics.count`."""
        if value > 0:
            self._counters[name].inc(value)

    def gauge(self, name: str, value: float) -> None:
        """See `Metrics.gauge`."""
        self._gauges[name].set(value)

    def observe(self, name: str, value: float) -> None:
        """See `Metrics.observe`."""
        self._histograms[name].observe(value)
