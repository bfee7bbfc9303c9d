"""A process killed by SIGKILL at random steps and started again learns, bit for bit, what an undisturbed one learns."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from omnifarm.store.local import LocalStore
from tests.unit.farm.concept_folders import write_concepts
from tests.unit.training.one_lane import KEY, STEPS, learn

ROOT = Path(__file__).parents[3]


def run(concepts: Path, store: Path, *, kill_at: int | None) -> tuple[int, list[int]]:
    """Start the process; kill it as soon as it says that it took step `kill_at`. Returns exit status and steps said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.training.one_lane", str(concepts), str(store)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(int(line))
        # The process does not wait: the signal meets it somewhere in the next step or in its checkpoint's write.
        if said[-1] == kill_at:
            process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait(), said


@pytest.mark.slow
def test_a_process_killed_at_random_steps_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    concepts = write_concepts(tmp_path / "concepts", ["ada"])
    expected = learn(str(concepts), str(tmp_path / "undisturbed"))
    seed = random.randrange(1 << 30)
    steps = sorted(random.Random(seed).sample(range(1, STEPS - 1), 2))
    store = tmp_path / "killed"
    for kill_at in steps:
        status, said = run(concepts, store, kill_at=kill_at)
        assert status == -signal.SIGKILL, f"seed {seed}"
        assert said[-1] < STEPS, f"seed {seed}: it must not have finished"
    status, said = run(concepts, store, kill_at=None)
    assert status == 0
    assert said[0] > steps[-1], f"seed {seed}: it must have gone on, not begun anew"
    tensors = load(LocalStore(store).get(KEY).data)
    assert torch.equal(tensors["soft"], expected), f"seed {seed}"
