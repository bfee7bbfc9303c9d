"""A sharded backbone: every process keeps a share of the weights, and all of them run every forward together.

Two libraries can do the gathering (`deepspeed_sharding.py`, `fsdp2_sharding.py`); everything else they share is here.
A gather is a call that all processes must make, in one order, or the cell hangs. Three things make it so:

1. **Turns.** Before each forward the processes take the largest of their wishes. A process without work makes idle
   turns and, when somebody has work, runs a pack of one text token. Turns are counted per pack, not per training step,
   so processes may have different numbers of lanes, packs and steps.
2. **One path.** Every forward runs every sharded module, on no rows if need be (`touch_every_parameter`).
3. **One way back.** Both output heads hang on both kinds of loss by a sum over nothing, so a backward pass goes through
   every module whichever samples a pack holds; the sum adds an exact zero.

What encodes pictures (`WHOLE`, 3 % of the published weights) stays whole in every process: pictures are prepared when a
lane begins, which is no moment at which the other processes could be asked to help.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.model import Backbone, TrainOutput
from omnifarm.backbone.packing import Pack, pack
from omnifarm.backbone.segments import SoftSlot, TextSegment
from omnifarm.backbone.weight_slices import WeightSlices
from omnifarm.training.sharding import Turn

EMBEDDING = "language_model.model.embed_tokens.weight"
"""Name of the token embedding in every weights file."""

WHOLE = ("vit_model", "connector")
"""Modules of the backbone that are not sharded."""


def without_whole(model: Backbone) -> dict[str, nn.Module]:
    """Take the modules out that a library is to leave alone; put them back with `setattr` when it is done."""
    taken = {name: getattr(model, name) for name in WHOLE}
    for name in WHOLE:
        delattr(model, name)
    return taken


class TrainForward(nn.Module):
    """The training forward as a module's own forward, tensors out: what gathering libraries hang their hooks on.

    Args:
        backbone: The model.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pack: Pack, soft_table: Tensor) -> tuple[Tensor, ...]:
        """Return the fields of `TrainOutput`, in order."""
        output = self.backbone.train_forward(pack, soft_table=soft_table)
        return tuple(getattr(output, field.name) for field in fields(output))


class Lockstep:
    """One process's share of a sharded backbone. The process group must be up.

    Args:
        gathering: A `TrainForward` whose modules gather their weights when they run.
        weights: The weights file, for single rows of the embedding.
        special_ids: Ids of the frame tokens.
        config: The backbone's configuration.
        model: The backbone inside `gathering`.
    """

    def __init__(
        self, gathering: nn.Module, *, weights: Path, special_ids: SpecialIds, config: BackboneConfig, model: Backbone
    ) -> None:
        self._gathering = gathering
        self._weights = weights
        self._device, self._dtype = model.device, model.dtype
        idle = TextSegment(ids=(0,), soft=(SoftSlot(offset=0, row=0, expert="und"),))
        self._idle_pack = pack([[idle]], special_ids=special_ids, config=config).to(self._device)
        self._idle_table = torch.zeros(1, config.hidden_size, device=self._device, requires_grad=True)
        # Activations of a layer hold on to its gathered weights: kept for the backward pass, they would soon be the
        # whole model (measured: the peak of ZeRO-3 was the share plus all weights).
        model.set_training_mode(gradient_checkpointing=True, touch_every_parameter=True)

    @property
    def device(self) -> torch.device:
        """Where soft tokens and packs belong."""
        return self._device

    def forward(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the packed training forward together with all other processes."""
        self._agree(Turn.WORKED)
        return self._run(pack, soft_table)

    def measure(self, pack: Pack, *, soft_table: Tensor) -> TrainOutput:
        """Run the packed forward for its losses alone, together with all other processes."""
        output = self.forward(pack, soft_table=soft_table)
        # The others may be learning in this turn, and gather every layer once more on their way back.
        torch.autograd.grad(output.ce.sum() + output.mse.sum(), soft_table)
        return output

    def idle_turn(self, *, is_finished: bool) -> Turn:
        """Take part in whatever the others do next."""
        turn = self._agree(Turn.OVER if is_finished else Turn.WAITING)
        if turn is Turn.WORKED:
            output = self._run(self._idle_pack, self._idle_table)
            torch.autograd.grad(output.ce.sum() + output.mse.sum(), self._idle_table)
        return turn

    def embedding_rows(self, ids: Sequence[int]) -> Tensor:
        """Read rows of the embedding from the file: a gather would need the others."""
        with WeightSlices(self._weights) as weights:
            return weights.rows(EMBEDDING, list(ids)).to(device=self._device, dtype=self._dtype)

    def _agree(self, wish: Turn) -> Turn:
        turn = torch.tensor(int(wish), device=self._device)
        dist.all_reduce(turn, op=dist.ReduceOp.MAX)
        return Turn(int(turn))

    def _run(self, pack: Pack, soft_table: Tensor) -> TrainOutput:
        values = self._gathering(pack.to(self._device), soft_table)
        output = TrainOutput(**dict(zip((field.name for field in fields(TrainOutput)), values, strict=True)))
        return replace(
            output, ce=output.ce + output.velocity[:0].float().sum(), mse=output.mse + output.logits[:0].float().sum()
        )
