"""The simulation's requests are those of a real worker and a real driver, counted."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.concept.sources import LocalSource, StoreSource
from omnifarm.farm.cells import CellFleet, FleetPlan
from omnifarm.farm.control import FarmControl
from omnifarm.farm.job import JobIdentity, JobState
from omnifarm.farm.overview import glance
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.sharing import DriverRegistry
from omnifarm.farm.simulation import Simulation
from omnifarm.farm.simulation_config import SimulationConfig
from omnifarm.farm.simulation_requests import depth_requests, glance_requests, look_requests
from omnifarm.farm.submission import Backbone, submit_concepts
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.counting import CountingStore
from omnifarm.store.memory import MemoryStore
from omnifarm.training.workbench import Workbench
from tests.unit.farm.concept_folders import RECIPE, write_concepts

NUM_CONCEPTS, NUM_SHARED, STEP_S = 8, 2, 20.0
SETTINGS = WorkerSettings(lanes=4, lease_s=240, heartbeat_s=60, checkpoint_s=80)


def test_a_worker_asks_what_the_simulation_says(
    tmp_path: Path, clock: ManualClock, backbone: Backbone, loaded: LoadedBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_concepts(tmp_path, [f"c{number}" for number in range(NUM_CONCEPTS)])
    (folder / "negatives").mkdir()
    for number in range(NUM_SHARED):
        picture = np.full((64, 64, 3), number, dtype=np.uint8)
        Image.fromarray(picture).save(folder / "negatives" / f"{number}.png")
    store, read = CountingStore(MemoryStore()), LocalSource.read

    def counting_read(source: LocalSource, path: str, *, max_bytes: int) -> bytes:
        # What the same file costs in a store, see the test below.
        store.requests.update(head=1, get=1)
        return read(source, path, max_bytes=max_bytes)

    monkeypatch.setattr(LocalSource, "read", counting_read)
    queue = JobQueue(store, clock=clock)
    submit_concepts(str(folder), queue=queue, backbone=backbone)
    workbench = Workbench(loaded, clock=clock, store=store)
    worker = Worker("w", store=store, workbench=workbench, recipe=backbone.recipe, settings=SETTINGS, clock=clock)
    step = worker.step

    def timed_step() -> None:
        step()
        clock.advance_s(STEP_S)

    worker.step = timed_step  # type: ignore[method-assign]
    worker.run()
    real = store.requests.copy()
    assert {record.state for record in queue.list()} == {JobState.COMMITTED}

    config = SimulationConfig(
        concepts=NUM_CONCEPTS,
        gpus=1,
        gpus_per_node=1,
        steps=int(str(RECIPE["steps"])),
        step_s=STEP_S,
        photos=2,
        shared_pictures=NUM_SHARED,
        worker=SETTINGS,
    )
    simulation = Simulation(config)
    monkeypatch.setattr(simulation, "_drive", lambda: None)  # of drivers see below
    simulation.run()
    simulated = simulation.store.requests
    for kind in ("put", "get", "head", "delete", "list"):
        # Within a tenth, and the few requests of a run's beginning and end.
        assert simulated[kind] == pytest.approx(real[kind], rel=0.1, abs=6), (kind, simulated, real)
    assert simulated.total() == pytest.approx(real.total(), rel=0.1), (simulated, real)


def test_a_file_of_a_place_in_a_store_is_read_with_two_requests() -> None:
    store = CountingStore(MemoryStore())
    store.put("a/1.png", b"x")
    store.reset()
    assert StoreSource(store).read("a/1.png", max_bytes=1) == b"x"
    assert store.requests == {"head": 1, "get": 1}


@pytest.mark.parametrize(("ready", "held", "capacity"), [(2500, 3, 150), (5, 3, 150), (0, 2, 1), (1200, 0, 1)])
def test_a_driver_asks_what_the_simulation_says(clock: ManualClock, ready: int, held: int, capacity: int) -> None:
    store = CountingStore(MemoryStore())
    queue = JobQueue(store, clock=clock)
    for number in range(ready + held):
        identity = JobIdentity(spec_digest=str(number), recipe_digest="r", backbone_fingerprint="b")
        queue.submit(name=f"c{number}", concept_url="u", identity=identity, num_steps=10)
    queue.lease_next("w", pool=identity.pool, ttl_s=600, max=held)
    plan = FleetPlan(pool=identity.pool, workers_per_cell=1, lanes=8)
    fleet = CellFleet(
        "driver",
        plan=plan,
        queue=queue,
        control=FarmControl(store),
        registry=DriverRegistry(store, clock=clock),
        capacity=lambda: capacity,
        run_cell=lambda name, size: None,
        clock=clock,
    )
    store.reset()
    fleet._is_done(lambda: False)
    fleet._adjust()
    depths, look = (
        depth_requests(ready=ready, held=held),
        look_requests(ready=ready, held=held, capacity=capacity, plan=plan),
    )
    assert store.requests == _by_kind(look) + _by_kind(depths)
    store.reset()
    fleet._is_done(lambda: False)
    fleet._adjust()
    assert store.requests == _by_kind(look), "the whole queue is counted now and then"
    store.reset()
    glance(queue)
    assert store.requests == _by_kind(glance_requests(jobs=ready + held, ready=ready, held=held))


def _by_kind(requests: Counter[tuple[str, str]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for (kind, _), count in requests.items():
        found[kind] += count
    return found
