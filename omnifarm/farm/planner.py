"""How large a cell to start for a number of jobs: decisions over plain numbers, made before anything runs."""

from dataclasses import dataclass

from omnifarm.errors import ConfigError

MAX_CPU_WORKERS = 8
"""Workers of a cell without GPUs: every one holds a copy of the backbone."""
MAX_LANES = 8
"""Concepts a worker trains side by side when nobody says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellShape:
    """The size of a cell."""

    num_workers: int
    """Worker processes."""
    lanes: int
    """Concepts a worker trains side by side."""
    cpus_per_worker: int
    """Logical CPUs, and threads, of a worker."""
    use_gpu: bool
    """Whether every worker gets a GPU."""


def plan_cell(
    *, num_jobs: int, num_cpus: int, num_gpus: int = 0, workers: int | None = None, lanes: int | None = None
) -> CellShape:
    """Choose a cell's size.

    Without GPUs one thread per worker does more in all than many threads per worker, so workers come before threads;
    with GPUs every GPU is one worker. Concepts are then spread evenly.

    Args:
        num_jobs: Unfinished jobs (>= 1).
        num_cpus: Logical CPUs of the cluster (>= 1).
        num_gpus: GPUs of the cluster.
        workers: Number of workers wanted, or None.
        lanes: Lanes per worker wanted, or None.

    Raises:
        ConfigError: A number is below 1, or more workers are wanted than there are GPUs or CPUs to run them.
    """
    for name, value in (("jobs", num_jobs), ("CPUs", num_cpus), ("workers", workers), ("lanes", lanes)):
        if value is not None and value < 1:
            raise ConfigError(f"a cell needs at least 1 of {name}, found {value}")
    use_gpu = num_gpus > 0
    places = num_gpus if use_gpu else num_cpus
    if workers is not None and workers > places:
        raise ConfigError(
            f"{workers} workers need {workers} {'GPUs' if use_gpu else 'CPUs'}, the cluster has {places}; "
            "ask for fewer or add nodes"
        )
    num_workers = workers or min(num_jobs, places if use_gpu else min(places, MAX_CPU_WORKERS))
    return CellShape(
        num_workers=num_workers,
        lanes=lanes or min(MAX_LANES, -(-num_jobs // num_workers)),
        cpus_per_worker=max(1, num_cpus // num_workers),
        use_gpu=use_gpu,
    )
