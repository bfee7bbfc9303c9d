from collections.abc import Mapping

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import FarmError
from omnifarm.farm.growth import Device, await_places
from omnifarm.farm.planner import NodeSize

HEAD = NodeSize(0)


class Growing:
    """A cluster whose nodes come one by one, each some looks after it was first asked for one."""

    def __init__(self, *coming: NodeSize) -> None:
        self.clock = ManualClock()
        self.present, self.coming = [HEAD], list(coming)
        self.asked: list[tuple[dict[str, float], int]] = []
        self.said: list[str] = []

    def nodes(self) -> list[NodeSize]:
        return list(self.present)

    def ask(self, bundle: Mapping[str, float], count: int) -> None:
        self.asked.append((dict(bundle), count))
        if count and self.coming:
            self.present.append(self.coming.pop(0))

    def wait(self, device: Device, workers: int, *, until_s: float | None = None) -> bool:
        return await_places(
            device, workers, nodes=self.nodes, ask=self.ask, say=self.said.append, clock=self.clock, until_s=until_s
        )


@pytest.mark.parametrize(
    ("device", "node", "expected"),
    [
        (Device.AUTO, NodeSize(2), False),
        (Device.AUTO, NodeSize(8, gpus=1), True),
        (Device.CPU, NodeSize(8, gpus=1), False),
        (Device.GPU, NodeSize(8, gpus=1), True),
    ],
)
def test_an_empty_cluster_is_waited_for_and_asked_to_grow(device: Device, node: NodeSize, expected: bool) -> None:
    cluster = Growing(node)
    assert cluster.wait(device, 1) is expected
    kind = "GPU" if device is Device.GPU else "CPU"
    assert cluster.asked == [({kind: 1}, 1), ({}, 0)]
    assert len(cluster.said) == 1
    assert f"needs 1 {kind}s, the cluster has 0" in cluster.said[0]


def test_gpus_are_waited_for_where_there_are_only_cpus_and_as_many_as_a_cell_has() -> None:
    cluster = Growing(NodeSize(8, gpus=1), NodeSize(8, gpus=1))
    cluster.present.append(NodeSize(64))
    assert cluster.wait(Device.GPU, 2)
    assert cluster.asked == [({"GPU": 1}, 2), ({"GPU": 1}, 2), ({}, 0)]
    assert len(cluster.said) == 1


def test_a_cluster_that_is_large_enough_is_asked_nothing() -> None:
    cluster = Growing()
    cluster.present.append(NodeSize(4))
    assert not cluster.wait(Device.AUTO, 99)
    assert not cluster.wait(Device.CPU, 4)
    assert cluster.asked == []
    assert cluster.said == []


def test_nodes_that_do_not_come_are_waited_for_until_the_deadline_and_asked_for_no_longer() -> None:
    cluster = Growing()
    with pytest.raises(FarmError, match="needs 2 GPUs, the cluster has 0 and no more came before the deadline"):
        cluster.wait(Device.GPU, 2, until_s=cluster.clock.now_s() + 30)
    assert cluster.asked[-1] == ({}, 0)
