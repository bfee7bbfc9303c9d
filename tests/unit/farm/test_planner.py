import pytest

from omnifarm.errors import ConfigError
from omnifarm.farm.planner import CellShape, NodeSize, cpus_on_one_node, places_for, plan_cells


def test_two_cores_become_two_workers_that_share_the_concepts() -> None:
    assert plan_cells(num_jobs=6, num_cpus=2) == CellShape(num_workers=2, lanes=3, cpus_per_worker=1, use_gpu=False)


def test_one_concept_gets_one_worker_with_every_thread() -> None:
    assert plan_cells(num_jobs=1, num_cpus=4) == CellShape(num_workers=1, lanes=1, cpus_per_worker=4, use_gpu=False)


def test_every_gpu_is_a_worker() -> None:
    shape = plan_cells(num_jobs=100, num_cpus=64, num_gpus=8)
    assert (shape.num_workers, shape.lanes, shape.cpus_per_worker, shape.use_gpu) == (8, 8, 8, True)


def test_wishes_are_kept() -> None:
    shape = plan_cells(num_jobs=6, num_cpus=4, workers_per_cell=3, lanes=1)
    assert (shape.num_workers, shape.lanes) == (3, 1)


def test_more_workers_than_places_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 workers need 3 CPUs, the cluster has 2"):
        plan_cells(num_jobs=6, num_cpus=2, workers_per_cell=3)


def test_a_cell_has_the_workers_that_hold_the_backbone_also_for_one_concept() -> None:
    shape = plan_cells(num_jobs=1, num_cpus=64, num_gpus=8, least_workers=2)
    assert (shape.num_workers, shape.lanes) == (2, 1)
    shape = plan_cells(num_jobs=1000, num_cpus=64, num_gpus=8, least_workers=2)
    assert (shape.num_workers, shape.lanes) == (2, 8)
    assert plan_cells(num_jobs=9, num_cpus=64, num_gpus=8, least_workers=2, workers_per_cell=4).num_workers == 4


@pytest.mark.parametrize("wanted", [{"num_gpus": 2}, {"num_gpus": 8, "workers_per_cell": 2}])
def test_a_cell_that_cannot_hold_the_backbone_is_refused(wanted: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="need 3 workers in a cell, found 2"):
        plan_cells(num_jobs=9, num_cpus=64, least_workers=3, **wanted)


def test_many_places_become_several_cells_of_eight() -> None:
    assert plan_cells(num_jobs=1000, num_cpus=64).num_workers == 8
    shape = plan_cells(num_jobs=1000, num_cpus=64, cells=2, workers_per_cell=4)
    assert (shape.num_workers, shape.cpus_per_worker, shape.lanes) == (4, 8, 8)
    assert places_for(shape, [NodeSize(64)]) == 8


def test_a_worker_has_no_more_threads_than_one_node_has_cpus() -> None:
    nodes = [NodeSize(0), NodeSize(4), NodeSize(4)]
    shape = plan_cells(num_jobs=1, num_cpus=8, cpus_at_most=cpus_on_one_node(nodes, use_gpu=False))
    assert shape.cpus_per_worker == 4
    assert places_for(shape, nodes) == 2


def test_cpus_of_nodes_without_gpus_are_not_promised_to_workers_with_one() -> None:
    nodes = [NodeSize(32), NodeSize(8, gpus=2), NodeSize(16, gpus=2)]
    shape = plan_cells(num_jobs=99, num_cpus=56, num_gpus=4, cpus_at_most=cpus_on_one_node(nodes, use_gpu=True))
    assert shape.cpus_per_worker == 4
    assert places_for(shape, nodes) == 4


@pytest.mark.parametrize(
    ("nodes", "use_gpu", "expected"),
    [
        ([], False, 0),
        ([NodeSize(0)], False, 0),
        ([NodeSize(3), NodeSize(3)], False, 2),
        ([NodeSize(8), NodeSize(8, gpus=1)], True, 1),
        ([NodeSize(2, gpus=4)], True, 1),
    ],
)
def test_places_are_counted_node_by_node(nodes: list[NodeSize], use_gpu: bool, expected: int) -> None:
    assert places_for(CellShape(num_workers=1, lanes=1, cpus_per_worker=2, use_gpu=use_gpu), nodes) == expected


def test_two_cells_share_the_places() -> None:
    assert plan_cells(num_jobs=12, num_cpus=4, cells=2).num_workers == 2


@pytest.mark.parametrize("lanes", [0, -1])
def test_no_lanes_are_refused(lanes: int) -> None:
    with pytest.raises(ConfigError, match="lanes"):
        plan_cells(num_jobs=6, num_cpus=2, lanes=lanes)
