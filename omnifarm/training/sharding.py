"""How the frozen backbone is laid out over the processes of a cell, behind five calls.

The soft tokens stay outside: a forward takes them as a table and gives back measurements whose graph ends in that
table. So a layout only decides where frozen weights lie, never what is learned. `Replicated` holds a whole copy per
process and needs nobody else; a sharded layout (`lockstep.py`) gathers weights layer by layer and needs every process
of the cell in every forward, which is what `idle_turn` is for.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from omnifarm.backbone.model import Backbone, TrainOutput
from omnifarm.backbone.packing import Pack
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ConfigError

ShardingName = Literal["replicated", "zero3", "fsdp2"]
"""A whole copy per process; DeepSpeed ZeRO-3; PyTorch's fully_shard."""
SHARDINGS: tuple[ShardingName, ...] = get_args(ShardingName)
"""Every layout there is."""
FITTING_SHARE = 0.6
"""Part of a worker's free memory that weights may take; the rest is for activations and the autoencoder."""

NEEDS_WHOLE_FOR_FLOAT8 = "float8 needs the whole backbone in every process; use --sharding replicated"
"""Said wherever a shared backbone is asked for 8-bit products."""


class Turn(IntEnum):
    """What a process wants of the next forward, and, as the largest of all wishes, what the cell does."""

    OVER = 0
    """All work is done; a process that hears this may leave."""
    WAITING = 1
    """No work now, more may come."""
    WORKED = 2
    """Somebody had work, and everybody took part in it."""


class Sharding(Protocol):
    """One process's share of a frozen backbone."""

    @property
    def device(self) -> torch.device:
        """Where soft tokens and packs belong."""
        ...

    def forward(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the packed training forward with `soft_table` (R, D); gradients flow to it alone.

        A backward pass through the losses must follow before the next call.
        """
        ...

    def measure(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the same forward for its losses alone; no backward pass may follow."""
        ...

    def idle_turn(self, *, is_finished: bool) -> Turn:
        """Let the others have their forward; a process without work of its own calls this until the cell is over.

        Args:
            is_finished: Whether this process expects no more work.

        Returns:
            What the cell did. Only after `OVER` may the process stop calling.
        """
        ...

    def embedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Return rows of the token embedding, (len(ids), D), without anybody's help."""
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

    def measure(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the packed training forward for its losses alone."""
        # With its graph, although nobody goes back through it: the kernels of passes without one round differently,
        # and a compiled backbone would have to be compiled for them anew.
        return self.forward(pack, soft_table=soft_table)

    def idle_turn(self, *, is_finished: bool) -> Turn:
        """Nobody gathers from this process: its own word counts."""
        return Turn.OVER if is_finished else Turn.WAITING

    def embedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Return rows of the copy's own table."""
        return self._model.language_model.model.embed_tokens.weight[list(ids)]


def require_shareable(recipe: TrainingRecipe) -> None:
    """Refuse a recipe that only a process with the whole backbone can follow.

    Raises:
        ConfigError: It computes in 8 bits, or lets concepts describe themselves.
    """
    if recipe.precision == "float8":
        raise ConfigError(NEEDS_WHOLE_FOR_FLOAT8)
    if recipe.is_self_described:
        raise ConfigError(
            "a concept describes itself (is_self_described) only where every process holds the whole backbone; use "
            "--sharding replicated, or --recipe '{\"is_self_described\": false}' and, for photographs without words, "
            "`omnifarm concept describe` first"
        )


def choose_sharding(wanted: str, *, weights_bytes: int, free_bytes: int, num_ranks: int) -> ShardingName:
    """Choose how a cell lays out its backbone.

    A whole copy per process is fastest, since nobody waits for anybody; it is chosen where it fits.

    Args:
        wanted: "auto" or the name of a layout.
        weights_bytes: Size of the backbone's weights in the type they are used in.
        free_bytes: Memory free for one process, on the device that has least.
        num_ranks: Processes of the cell.

    Raises:
        ConfigError: There is no such layout, or not even the shares fit.
    """
    if wanted in SHARDINGS:
        return wanted
    if wanted != "auto":
        raise ConfigError(f"sharding must be auto or one of {', '.join(SHARDINGS)}, found {wanted!r}")
    least = least_workers(weights_bytes=weights_bytes, free_bytes=free_bytes)
    if least == 1:
        return "replicated"
    if least <= num_ranks:
        return "zero3"
    raise ConfigError(
        f"the backbone's weights need {weights_bytes / 1e9:.1f} GB and one of {num_ranks} workers has room for "
        f"{FITTING_SHARE * free_bytes / 1e9:.1f} GB of them; use at least {least} workers in the cell, "
        "or name a layout with --sharding to try it all the same"
    )


def least_workers(*, weights_bytes: int, free_bytes: int) -> int:
    """Return how many workers a cell needs at least to hold a backbone between them; 1 where a whole copy fits.

    Args:
        weights_bytes: Size of the backbone's weights in the type they are used in.
        free_bytes: Memory free for one worker.
    """
    return max(1, math.ceil(weights_bytes / max(1, int(FITTING_SHARE * free_bytes))))
