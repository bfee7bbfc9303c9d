"""The job on a real cluster, ended before its concepts are learned."""

import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from omnifarm.clock import SystemClock
from omnifarm.farm.job import JobState
from omnifarm.farm.queue import JobQueue
from omnifarm.store.local import LocalStore
from tests.unit.farm.concept_folders import CHECKPOINT, write_concepts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # What Ray and its dependencies warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]

DEADLINE_S = 25
RECIPE = '{"batch_size": 2, "warmup_steps": 2, "num_und": 2, "num_gen": 2, "precision": "float32"}'


def test_at_the_deadline_the_job_ends_and_holds_no_concept_any_more(cluster: Any, tmp_path: Path) -> None:
    from jobs.train_concepts import main

    app = typer.Typer()
    app.command()(main)
    folder = write_concepts(tmp_path / "concepts", ["ada", "bob", "cyd"])
    began_s = time.monotonic()
    result = CliRunner().invoke(
        app,
        [
            "--concepts", str(folder), "--store", str(tmp_path / "store"), "--backbone", str(CHECKPOINT),
            "--steps", "1000000", "--recipe", RECIPE, "--cells", "1", "--workers-per-cell", "1",
            "--max-concepts", "2", "--deadline", str(DEADLINE_S), "--checkpoint-s", "1",
        ],
    )  # fmt: skip
    assert result.exit_code == 1, result.output
    assert time.monotonic() - began_s >= DEADLINE_S
    records = {record.name: record for record in JobQueue(LocalStore(tmp_path / "store"), clock=SystemClock()).list()}
    assert records.keys() == {"ada", "bob"}
    for record in records.values():
        # Given back, not left to run out: somebody else may go on at once, and no attempt is counted. How far they came
        # by then is the machine's affair; that a worker that is to stop saves first is held in tests/unit/farm/test_worker.py.
        assert (record.state, record.lease, record.attempts) == (JobState.QUEUED, None, 0)
