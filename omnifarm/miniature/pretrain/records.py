"""Curves and checkpoints of pre-training: one JSON line a record, states written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


class Recorder:
    """Averages what is added between two lines and appends the lines to a file.

    Args:
        path: Made when absent; a resumed run goes on in the same file.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._sums: dict[str, tuple[float, int]] = {}
        self._step = 0

    def add(self, *, step: int, **values: float) -> None:
        """Add the values of a step; their means go into the next line."""
        self._step = step
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def write(self, **values: Any) -> None:
        """Append a line: step, means since the last line, and `values`."""
        means = {name: round(total / count, 5) for name, (total, count) in self._sums.items()}
        rounded = {k: round(v, 5) if isinstance(v, float) else v for k, v in values.items()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self._step, **means, **rounded}) + "\n")
        self._sums.clear()


def resumed_draws(seed: int, step: int) -> np.random.Generator:
    """Seed torch and return a generator for a stage that begins, or goes on, at `step`.

    What was drawn before an interruption is not drawn again in the same order after it.
    """
    torch.manual_seed(seed + step)
    return np.random.default_rng([seed, step])


def save_state(path: Path, tensors: Mapping[str, Tensor], **facts: Any) -> None:
    """Write a training state as safetensors, atomically: a killed run finds the old one or the new one.

    Args:
        path: Where to.
        tensors: Name to tensor.
        **facts: JSON-compatible values that belong to them.
    """
    partial = path.with_suffix(".partial")
    kept = {name: value.detach().to("cpu").clone().contiguous() for name, value in tensors.items()}
    save_file(kept, str(partial), metadata={"facts": json.dumps(facts)})
    partial.replace(path)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return tensors and facts of `save_state`."""
    with safe_open(path, framework="pt") as file:
        facts: dict[str, Any] = json.loads(file.metadata()["facts"])
    return load_file(str(path)), facts
