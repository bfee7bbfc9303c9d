"""Nodes that are not there yet: a cluster that grows with its work is empty when a job comes, and is asked to grow.

What a worker can have (a GPU, how many CPUs, how much memory) shows on a node only, so a job waits for the first ones and
plans by them. From then on `farm/cells.py` asks for as many as there are concepts for. Knows no Ray.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from omnifarm.clock import Clock
from omnifarm.errors import FarmError
from omnifarm.farm.planner import NodeSize

_LOOK_S = 2.0


class Device(Enum):
    """What workers train on; closed."""

    AUTO = "auto"
    """GPUs if the cluster has any when the job begins, else CPUs."""
    CPU = "cpu"
    """CPUs, whatever else there is."""
    GPU = "gpu"
    """GPUs: those that are there and those that come."""


def await_places(
    device: Device,
    workers: int,
    *,
    nodes: Callable[[], Sequence[NodeSize]],
    ask: Callable[[Mapping[str, float], int], None],
    say: Callable[[str], None],
    clock: Clock,
    until_s: float | None = None,
) -> bool:
    """Wait until a cluster has nodes for a first cell; return at once if it has.

    Args:
        device: What on. With AUTO the first CPU or GPU will do: its user has not said that there is to be more.
        workers: Workers of the cell (>= 1).
        nodes: Returns the nodes that are there.
        ask: Told what a worker needs and how many are wanted, and 0 at the end; reaches the autoscaler, if there is one.
        say: Told what is waited for.
        clock: Time.
        until_s: Seconds since the epoch at which to give up; None for never.

    Returns:
        Whether workers get GPUs.

    Raises:
        FarmError: They had not come by `until_s`.
    """
    wanted, kind = (1, "CPU") if device is Device.AUTO else (workers, device.name)
    is_asked = False
    try:
        while True:
            present = nodes()
            cpus, gpus = sum(node.cpus for node in present), sum(node.gpus for node in present)
            found = {Device.AUTO: max(cpus, gpus), Device.CPU: cpus, Device.GPU: gpus}[device]
            if found >= wanted:
                return gpus > 0 if device is Device.AUTO else device is Device.GPU
            lack = f"a first cell needs {wanted} {kind}s, the cluster has {found}"
            if until_s is not None and clock.now_s() >= until_s:
                raise FarmError(f"{lack} and no more came before the deadline; add nodes, or see why none are added")
            if not is_asked:
                say(f"{lack}: waiting for nodes, which its autoscaler, if it has one, is asked for")
            is_asked = True
            ask({kind: 1}, wanted)
            clock.sleep_s(_LOOK_S)
    finally:
        if is_asked:
            ask({}, 0)
