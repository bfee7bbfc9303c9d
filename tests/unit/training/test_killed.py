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
    """Start the process; kill it as soon as it says a step of at least `kill_at`. Returns exit status and steps said."""
    # One that is to be killed cannot win the race: it waits before its last step for an end of input that never comes.
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.unit.training.one_lane", str(concepts), str(store), *["hold"] * bool(kill_at)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    said = []
    for line in process.stdout:
        said.append(int(line))
        # The process goes on meanwhile: the signal meets it somewhere in a step or in its checkpoint's write.
        if kill_at is not None and said[-1] >= kill_at:
            process.send_signal(signal.SIGKILL)
    process.stdout.close()
    status = process.wait()
    process.stdin.close()
    return status, said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_process_killed_at_random_steps_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    concepts = write_concepts(tmp_path / "concepts", ["ada"])
    learn(str(concepts), str(tmp_path / "undisturbed"))
    seed = random.randrange(1 << 30)
    steps = sorted(random.Random(seed).sample(range(1, STEPS), 2))
    store = tmp_path / "killed"
    begins = 0
    for kill_at in steps:
        status, said = run(concepts, store, kill_at=kill_at)
        assert status == -signal.SIGKILL, f"seed {seed}"
        assert said[0] >= begins, f"seed {seed}: it must have gone on, not begun anew"
        begins = said[-1]
        assert kill_at <= begins < STEPS, f"seed {seed}"
    status, said = run(concepts, store, kill_at=None)
    assert status == 0
    assert said[0] >= begins, f"seed {seed}: it must have gone on, not begun anew"
    assert said[-1] == STEPS
    expected, found = (load(LocalStore(folder).get(KEY).data) for folder in (tmp_path / "undisturbed", store))
    assert set(found) == {"soft", "first", "second", "losses", "held_out_losses", "best"}
    for name, tensor in expected.items():
        # A task without a sample in a step has nan for its loss there.
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True, msg=f"seed {seed}: {name}")
