"""A short chaos: two nodes, a real SeaweedFS, and everything that goes wrong. `omnifarm farm chaos` is the long one."""

from pathlib import Path

import pytest

from omnifarm.cli.farm_chaos import FAULTS, ChaosConfig, is_passed, run_chaos
from omnifarm.cli.local_seaweedfs import weed_binary
from omnifarm.errors import FarmError
from tests.unit.farm.concept_folders import CHECKPOINT, write_concepts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # What Ray and its dependencies warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]

RECIPE = (
    '{"batch_size": 2, "learning_rate": 0.01, "warmup_steps": 2, "num_und": 2, "num_gen": 2, "precision": "float32"}'
)


def test_killed_workers_nodes_drivers_and_stores_and_failing_writes_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    try:
        weed_binary()
    except FarmError as error:
        pytest.skip(str(error))
    folder = tmp_path / "chaos"
    folder.mkdir()
    config = ChaosConfig(
        concepts=str(write_concepts(tmp_path / "concepts", ["ada", "bob", "cyd", "dan"])),
        backbone=str(CHECKPOINT),
        steps=120,
        recipe=RECIPE,
        seed=1,
        timeout_s=500,
    )
    verdict = run_chaos(config, folder=folder, checkout=Path(__file__).parents[2])
    assert is_passed(verdict, num_faults=len(FAULTS)), verdict
