"""How large cells to start for a number of jobs: decisions over plain numbers, made before anything runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from omnifarm.errors import ConfigError

MAX_CELL_WORKERS = 8
"""Workers of a cell when nobody says otherwise; when one dies, Ray starts all workers of its cell again."""
MAX_LANES = 8
"""Concepts a worker trains side by side when nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class NodeSize:
    """What one node offers to workers."""

    cpus: int
    """Logical CPUs; 0 on a head that trains nothing."""
    gpus: int = 0
    """GPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellShape:
    """The size of a driver's cells."""

    num_workers: int
    """Workers of a whole cell."""
    lanes: int
    """Concepts a worker trains side by side."""
    cpus_per_worker: int
    """Logical CPUs, and threads, of a worker."""
    use_gpu: bool
    """Whether every worker gets a GPU."""


def plan_cells(
    *,
    num_jobs: int,
    num_cpus: int,
    num_gpus: int = 0,
    cells: int | None = None,
    workers_per_cell: int | None = None,
    lanes: int | None = None,
    least_workers: int = 1,
    cpus_at_most: int | None = None,
) -> CellShape:
    """Choose the size of a driver's cells; how many run at a moment is decided in `farm/cells.py`.

    Without GPUs one thread per worker does more in all than many threads per worker, so workers come before threads;
    with GPUs every GPU is one worker. Concepts are then spread evenly.

    Args:
        num_jobs: Unfinished jobs (>= 1).
        num_cpus: Logical CPUs of the cluster (>= 1).
        num_gpus: GPUs of the cluster.
        cells: Most cells at a time, or None for as many as fit.
        workers_per_cell: Workers of a cell wanted, or None.
        lanes: Lanes per worker wanted, or None.
        least_workers: Workers without which a cell cannot hold the backbone. If several, a cell has just so many
            unless more are wanted: the fewer share it, the less they gather.
        cpus_at_most: Most CPUs of a worker, which lives on one node (see `cpus_on_one_node`); None for a single node.

    Raises:
        ConfigError: A number is below 1, or a cell wants more workers than there are GPUs or CPUs to run them, or
            fewer than hold the backbone.
    """
    for name, value in (
        ("jobs", num_jobs),
        ("CPUs", num_cpus),
        ("cells", cells),
        ("workers", workers_per_cell),
        ("lanes", lanes),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"a cell needs at least 1 of {name}, found {value}")
    use_gpu = num_gpus > 0
    places = num_gpus if use_gpu else num_cpus
    if workers_per_cell is not None and workers_per_cell > places:
        raise ConfigError(
            f"{workers_per_cell} workers need {workers_per_cell} {'GPUs' if use_gpu else 'CPUs'}, the cluster has "
            f"{places}; ask for fewer or add nodes"
        )
    if least_workers > (workers_per_cell or places):
        raise ConfigError(
            f"the backbone's weights need {least_workers} workers in a cell, found {workers_per_cell or places}; "
            "ask for more, add nodes, or use devices with more memory"
        )
    useful = min(num_jobs, places)
    fitting = max(1, min(MAX_CELL_WORKERS, useful // (cells or 1)))
    num_workers = workers_per_cell or (least_workers if least_workers > 1 else fitting)
    total = min(useful, places if cells is None else cells * num_workers)
    return CellShape(
        num_workers=num_workers,
        lanes=lanes or min(MAX_LANES, -(-num_jobs // total)),
        cpus_per_worker=max(1, min(cpus_at_most or num_cpus, num_cpus // (num_gpus or max(total, num_workers)))),
        use_gpu=use_gpu,
    )


def places_for(shape: CellShape, nodes: Iterable[NodeSize]) -> int:
    """Return how many workers of a shape nodes can hold, each on one of them."""
    fitting = ((node.cpus // shape.cpus_per_worker, node.gpus) for node in nodes)
    return sum(min(by_cpus, gpus) if shape.use_gpu else by_cpus for by_cpus, gpus in fitting)


def cpus_on_one_node(nodes: Iterable[NodeSize], *, use_gpu: bool) -> int:
    """Return the most CPUs that a worker can have: of GPUs so that each can be used, else those of the largest node."""
    if use_gpu:
        return max(1, min((node.cpus // node.gpus for node in nodes if node.gpus), default=1))
    return max(1, max((node.cpus for node in nodes), default=1))
