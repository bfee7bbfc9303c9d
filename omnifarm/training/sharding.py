"""How the frozen backbone is laid out over processes, behind three calls.

The soft tokens stay outside: a forward takes them as a table and gives back measurements whose graph ends in that
table. So a layout only decides where frozen weights lie, never what is learned. `Replicated` holds a whole copy per
process and needs nobody else; a sharded layout gathers weights layer by layer and must keep its ranks in lock-step,
which is what `any_active` and `idle_step` are for.
"""

from typing import Protocol

import torch
from torch import Tensor

from omnifarm.backbone.model import Backbone, TrainOutput
from omnifarm.backbone.packing import Pack


class Sharding(Protocol):
    """One process's share of a frozen backbone."""

    @property
    def device(self) -> torch.device:
        """Where soft tokens and packs belong."""
        ...

    def forward(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the packed training forward with `soft_table` (R, D); gradients flow to it alone."""
        ...

    def any_active(self, *, is_active: bool) -> bool:
        """Return whether any process of the cell still has work; every process must call it once per step."""
        ...

    def idle_step(self) -> None:
        """Take part in one step without own work, so that the others can gather their weights."""
        ...


class Replicated:
    """A whole frozen copy in this process.

    Args:
        model: The backbone; its parameters must not require gradients.
    """

    def __init__(self, model: Backbone) -> None:
        trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        if trainable:
            raise ValueError(
                f"expected a frozen backbone, found {len(trainable)} trainable tensors such as {trainable[0]}"
            )
        self._model = model

    @property
    def device(self) -> torch.device:
        """Where the copy lies."""
        return next(self._model.parameters()).device

    def forward(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the packed training forward."""
        return self._model.train_forward(pack, soft_table=soft_table)

    def any_active(self, *, is_active: bool) -> bool:
        """Nobody else needs this process: its own word counts."""
        return is_active

    def idle_step(self) -> None:
        """Nothing to do: nobody gathers from this process."""
