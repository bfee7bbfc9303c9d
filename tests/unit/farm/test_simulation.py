import pytest

from omnifarm.errors import ConfigError
from omnifarm.farm.simulation import Simulation, SimulationConfig


def test_a_small_farm_in_bad_weather_commits_everything_once_and_says_what_it_cost() -> None:
    calm = SimulationConfig(concepts=256, gpus=16, steps=200)
    storm = SimulationConfig(concepts=256, gpus=16, steps=200, mtbf_h=0.5, preemption_h=0.3)
    fair, foul = Simulation(calm).run(), Simulation(storm).run()
    for report in (fair, foul):
        assert (report["committed"], report["committed_twice"]) == (256, 0)
    assert foul["faults"]["failure"] > 2
    assert foul["faults"]["preemption"] > 2
    assert foul["utilisation"] < fair["utilisation"] < 1
    assert foul["lost"]["repeated"] > fair["lost"]["repeated"] == 0
    # Nothing is repeated or waited for in fair weather: two waves of 200 s, each device loads once.
    assert fair["hours"] * 3600 == pytest.approx(150 + 2 * 200, abs=36)


def test_a_seed_is_a_run() -> None:
    config = SimulationConfig(concepts=64, gpus=8, steps=100, mtbf_h=2, seed=3)
    assert Simulation(config).run() == Simulation(config).run()


def test_devices_come_in_whole_nodes() -> None:
    with pytest.raises(ConfigError, match="whole nodes of 8"):
        SimulationConfig(gpus=12)
