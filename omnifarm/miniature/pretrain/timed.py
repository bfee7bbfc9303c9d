"""What main, understanding and drawing stage share: steps until a wall-clock budget is spent, curves, resumption.

The rate is annealed over the budget, so a run ends annealed whatever the machine does.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch.distributed as dist
from torch import nn

from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, OptimizerConfig, cosine
from omnifarm.miniature.pretrain.parallel import agreed
from omnifarm.miniature.pretrain.records import Recorder, load_state, save_state

ADAM_ONLY = ("embed_tokens", "lm_head", "vae2llm", "llm2vae", "time_embedder", "soft.", "matches.")
_LOG_EVERY_S = 20.0


class TimedConfig(Protocol):
    """What every stage's configuration says."""

    @property
    def budget_s(self) -> float:
        """Wall-clock seconds."""

    @property
    def anneal_from(self) -> float:
        """Fraction of the budget after which the rate falls."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """Rates."""

    @property
    def save_every_s(self) -> float:
        """Seconds between two states on disk."""


class TimedTrainer(ABC):
    """One process of a stage.

    Args:
        named: Weights to train, with the names that their masters are saved under.
        name: Of the stage.
        folder: Receives `NAME.jsonl` and `NAME_state.safetensors` (rank 0), and is resumed from.
        timing: Budget, schedule and rates.
    """

    def __init__(
        self, named: Sequence[tuple[str, nn.Parameter]], *, name: str, folder: Path, timing: TimedConfig
    ) -> None:
        self.timing = timing
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.names = [weight for weight, _ in named]
        self.optimizer = MasterOptimizer(named, config=timing.optimizer, adam_only=ADAM_ONLY)
        self.recorder = Recorder(folder / f"{name}.jsonl")
        self.path = folder / f"{name}_state.safetensors"
        self.step_index, self.spent_s, self.fraction = 0, 0.0, 0.0
        if self.path.is_file():
            state, facts = load_state(self.path)
            self.optimizer.load_state_dict(state)
            self.step_index, self.spent_s = facts["step"], facts["spent_s"]

    @abstractmethod
    def step(self, scale: float) -> None:
        """Draw a batch, take its gradient, update, and count the step.

        Args:
            scale: Factor on the rates, 0..1.
        """

    def run(self) -> None:
        """Train until the budget is spent."""
        start = time.monotonic() - self.spent_s
        saved = logged = time.monotonic()
        while (elapsed := agreed(time.monotonic() - start)) < self.timing.budget_s:
            self.fraction = elapsed / self.timing.budget_s
            self.step(rate_scale(self.fraction, step=self.step_index, anneal_from=self.timing.anneal_from))
            now = time.monotonic()
            if self.rank == 0 and now - logged > _LOG_EVERY_S:
                logged = now
                self.recorder.write(seconds=round(elapsed, 1), skipped=self.optimizer.num_skipped)
            if self.rank == 0 and now - saved > self.timing.save_every_s:
                saved = now
                self.save(elapsed)
        if self.rank == 0:
            self.recorder.write(final=True)
            self.save(self.timing.budget_s)

    def save(self, elapsed: float) -> None:
        """Write the state that a restart goes on from, after `elapsed` seconds of the budget."""
        self.spent_s = elapsed
        save_state(self.path, self.optimizer.state_dict(), names=self.names, step=self.step_index, spent_s=elapsed)


def rate_scale(fraction: float, *, step: int, anneal_from: float) -> float:
    """Return the schedule's factor: 100 warm-up steps, flat, then a cosine down to 1 % at the end of the budget."""
    warm = min(1.0, (step + 1) / 100)
    falling = cosine((fraction - anneal_from) / (1 - anneal_from)) if fraction > anneal_from else 1.0
    return warm * falling
