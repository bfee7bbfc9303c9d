"""How a worker works: numbers that a job passes to its cells."""

from dataclasses import dataclass

from omnifarm.errors import ConfigError
from omnifarm.farm.tracking import check_tracker

MANY_JOBS = 200
"""From so many on leases are long: requests cost more than a dead worker's concepts do by waiting."""


def lease_for(num_jobs: int) -> float:
    """Return how long to lease each of so many jobs, in seconds.

    A short lease brings a dead worker's concepts back soon, and costs a request every few seconds for each concept in
    training; of many concepts a few may wait five minutes while the others are learned.
    """
    return 40.0 if num_jobs < MANY_JOBS else 300.0


def checkpoint_for(lease_s: float) -> float:
    """Return how often to save lanes under leases of a length, in seconds: who waits that long may repeat that much."""
    return max(30.0, lease_s / 4)


def heartbeat_for(lease_s: float) -> float:
    """Return how often to renew leases of a length, in seconds.

    Up to a minute's lease every five seconds, so that people see steps as they are taken; beyond it a third of the
    lease, because so long a lease is chosen by a farm of thousands of devices, where requests are what counts.
    """
    return min(5.0, lease_s / 4) if lease_s <= 60 else lease_s / 3


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSettings:
    """How a worker works; none of it changes what is learned, but for rounding."""

    lanes: int = 4
    """Concepts trained side by side."""
    lanes_per_pack: int = 4
    """Lanes that share one forward, see `Trainer`."""
    compiled: bool = False
    """Fuse what surrounds attention with torch.compile, where the worker has a compiler: see `training/compiling.py`.
    Sums are rounded elsewhere than without it."""
    lease_s: float = 40.0
    """Seconds after which an unrenewed lease may be taken over."""
    heartbeat_s: float = 5.0
    """Seconds between renewals; well below the lease, see `heartbeat_for`."""
    checkpoint_s: float = 30.0
    """Seconds of work that a crash may cost."""
    poll_s: float = 1.0
    """Seconds between looks at the queue while lanes are free; twice as long after every look in vain, up to a quarter
    of a lease."""
    patience_s: float = 300.0
    """Seconds for which the store may be away before the worker gives up."""
    stop_at_s: float | None = None
    """Seconds since the epoch at which to save, give everything back and leave; None for never."""
    track: str | None = None
    """Where losses go besides the artifacts, see `tracking.TRACKERS`; None for nowhere."""

    def __post_init__(self) -> None:
        for name in ("lanes", "lanes_per_pack"):
            if getattr(self, name) < 1:
                raise ConfigError(f"worker: {name} must be at least 1, found {getattr(self, name)}")
        for name in ("lease_s", "heartbeat_s", "checkpoint_s", "poll_s", "patience_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"worker: {name} must be above 0 seconds, found {getattr(self, name)}")
        if self.track is not None:
            check_tracker(self.track)
        if self.heartbeat_s * 2 > self.lease_s:
            raise ConfigError(
                f"worker: heartbeat_s {self.heartbeat_s} must be at most half of lease_s {self.lease_s}, "
                "or one late heartbeat loses the lease"
            )
