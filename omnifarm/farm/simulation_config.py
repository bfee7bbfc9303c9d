"""What a simulated farm is given: sizes, rates and settings, all of them assumptions of whoever simulates."""

from dataclasses import dataclass

from omnifarm.errors import ConfigError
from omnifarm.farm.planner import MAX_LANES
from omnifarm.farm.worker_settings import WorkerSettings

_WORKER = WorkerSettings(lanes=MAX_LANES)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulationConfig:
    """What is simulated. Times in seconds, rates per device or node."""

    concepts: int = 1_000_000
    """Jobs queued at the start."""
    gpus: int = 2_000
    """Devices; whole nodes."""
    gpus_per_node: int = 8
    """Devices of a node; a node carries one cell."""
    steps: int = 2_000
    """Steps per concept."""
    photos: int = 10
    """Pictures of a concept that no other shares."""
    shared_pictures: int = 100
    """Pictures that all concepts share as negatives; each worker process fetches them once."""
    step_s: float = 1.0
    """Seconds of one step of a full device; with fewer lanes a step takes proportionally less."""
    start_s: float = 150.0
    """From a node's or worker's start to its first step: Ray Train, loading the backbone."""
    mtbf_h: float = 50_000.0
    """Mean device hours between failures; a failure restarts the device's cell."""
    preemption_h: float = 24.0
    """Mean hours until a spot node is taken away."""
    notice_s: float = 30.0
    """Warning before that; workers save and give back."""
    absence_s: float = 900.0
    """Mean time until a node is replaced."""
    worker: WorkerSettings = _WORKER
    """Lanes of a device, and how long leases, heartbeats and checkpoints are; the rest of it is not simulated."""
    seed: int = 0
    """Of all chance."""

    def __post_init__(self) -> None:
        if self.gpus % self.gpus_per_node or self.gpus < 1 or self.concepts < 1:
            raise ConfigError(f"simulation: whole nodes of {self.gpus_per_node} devices, found {self.gpus} devices")
