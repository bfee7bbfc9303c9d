import pytest

from omnifarm.errors import ConfigError
from omnifarm.farm.simulation import Simulation
from omnifarm.farm.simulation_config import SimulationConfig
from omnifarm.farm.worker_settings import WorkerSettings, checkpoint_for, heartbeat_for, lease_for


def test_a_small_farm_in_bad_weather_commits_everything_once_and_says_what_it_cost() -> None:
    calm = SimulationConfig(concepts=256, gpus=16, steps=200)
    storm = SimulationConfig(concepts=256, gpus=16, steps=200, mtbf_h=0.5, preemption_h=0.2)
    fair, foul = Simulation(calm).run(), Simulation(storm).run()
    for report in (fair, foul):
        assert (report["committed"], report["committed_twice"]) == (256, 0)
    assert foul["faults"]["failure"] > 2
    assert foul["faults"]["preemption"] > 2
    assert foul["utilisation"] < fair["utilisation"] < 1
    assert foul["lost"]["repeated"] > fair["lost"]["repeated"] == 0
    # Nothing is repeated or waited for in fair weather: two waves of 200 s, each device loads once.
    assert fair["hours"] * 3600 == pytest.approx(150 + 2 * 200, abs=36)


def test_every_worker_looks_for_leases_that_ran_out() -> None:
    """What a failure ended is taken up by workers that have nothing else, soon after its leases are over."""
    rare = WorkerSettings(lanes=8, lease_s=1200, heartbeat_s=400, checkpoint_s=300)
    settings = {"concepts": 768, "gpus": 48, "preemption_h": 1000, "worker": rare}
    calm = Simulation(SimulationConfig(**settings, seed=3)).run()
    struck = Simulation(SimulationConfig(**settings, mtbf_h=40, seed=2)).run()
    assert (calm["faults"], struck["faults"]) == ({}, {"failure": 1})
    # A lease, and what was not saved, come on top.
    assert struck["hours"] - calm["hours"] < (1200 + 300) / 3600


def test_the_settings_of_the_workers_are_those_that_are_simulated() -> None:
    rare = WorkerSettings(lanes=8, lease_s=1200, heartbeat_s=heartbeat_for(1200), checkpoint_s=300)
    often = Simulation(SimulationConfig(concepts=64, gpus=8, steps=1000)).run()
    seldom = Simulation(SimulationConfig(concepts=64, gpus=8, steps=1000, worker=rare)).run()
    usual = WorkerSettings()
    assert (often["lease_s"], often["heartbeat_s"], often["checkpoint_s"]) == (
        usual.lease_s, usual.heartbeat_s, usual.checkpoint_s,
    )  # fmt: skip
    assert (seldom["lease_s"], seldom["heartbeat_s"], seldom["checkpoint_s"]) == (1200, 400, 300)
    # A thousand seconds are 200 heartbeats or two, and 33 checkpoints or three.
    assert 220 < often["requests_per_concept"] - seldom["requests_per_concept"] < 250


@pytest.mark.parametrize(("jobs", "lease_s", "checkpoint_s"), [(1, 40, 30), (199, 40, 30), (200, 300, 75)])
def test_many_jobs_are_leased_for_longer(jobs: int, lease_s: float, checkpoint_s: float) -> None:
    assert (lease_for(jobs), checkpoint_for(lease_for(jobs))) == (lease_s, checkpoint_s)
    assert checkpoint_for(1200) == 300


@pytest.mark.parametrize(("lease_s", "expected"), [(4, 1), (40, 5), (60, 5), (300, 100), (1200, 400)])
def test_a_long_lease_is_renewed_seldom_and_any_lease_twice_at_least(lease_s: float, expected: float) -> None:
    assert heartbeat_for(lease_s) == expected
    WorkerSettings(lease_s=lease_s, heartbeat_s=expected)


def test_a_seed_is_a_run() -> None:
    config = SimulationConfig(concepts=64, gpus=8, steps=100, mtbf_h=2, seed=3)
    assert Simulation(config).run() == Simulation(config).run()


def test_devices_come_in_whole_nodes() -> None:
    with pytest.raises(ConfigError, match="whole nodes of 8"):
        SimulationConfig(gpus=12)
