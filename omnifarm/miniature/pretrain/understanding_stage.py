"""The understanding stage: more questions for the understanding expert, held to what drawing reads of it.

Runs between main and drawing stage. The generation expert reads the keys and values of the understanding expert, so
training one alone takes the other's reading away. Here the generation side is frozen, and an anchor holds the rest as
far as comparing leaves it free; drawing is trained behind it:

    loss = text loss + match loss + w mean over layers, K and V of |new - old|^2 / |old|^2   on conditions of drawing

Questions are mostly whether somebody is in a picture. Most introductions tell a few attributes (`curriculum`), the
others all; Yes is as frequent as No, and pictures of two are as frequent under either answer. Data parallel over
processes; the budget is wall-clock time.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Segment, pack
from omnifarm.miniature.identity import LABELS
from omnifarm.miniature.pretrain.drawing import is_drawing_weight, keys_and_values
from omnifarm.miniature.pretrain.main_stage import SoftTable, text_losses
from omnifarm.miniature.pretrain.optimizer import OptimizerConfig
from omnifarm.miniature.pretrain.parallel import average_gradients
from omnifarm.miniature.pretrain.tasks import Sampler
from omnifarm.miniature.pretrain.timed import TimedTrainer

_FROZEN = ("vit_model", "vit_pos_embed", "latent_pos_embed")
_VERDICT_WEIGHT = 3.0


@dataclass(frozen=True, kw_only=True, slots=True)
class UnderstandingConfig:
    """How the understanding stage is trained."""

    budget_s: float
    """Wall-clock seconds."""
    mix: Mapping[str, int] = field(default_factory=lambda: {"understand": 3, "watch": 1})
    """Samples of each task per step and process."""
    num_introduced: int = 8
    """Introductions per step and process that pictures are compared with."""
    num_compared: int = 4
    """Pictures compared with each."""
    share_partial: float = 0.75
    """Share of introductions that tell a few attributes at first."""
    share_partial_after: float = 0.45
    """The same later."""
    few_until: float = 0.5
    """Fraction of the budget at which it changes."""
    num_anchored: int = 4
    """Conditions of drawing per step and process that the anchor is taken on."""
    anchor_weight: float = 0.5
    """w."""
    anneal_from: float = 0.5
    """Fraction of the budget after which the rate falls."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.008, adam_rate=2e-3))
    """Rates."""
    save_every_s: float = 60.0
    """Between two states on disk."""


class MatchHeads(nn.Module):
    """Linear heads that say of every attribute whether picture and introduction agree; trained along, never exported.

    They read the vector that Yes or No is told from: one bit an answer would teach it less.

    Args:
        width: Of that vector.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, len(LABELS))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def loss(self, hidden: Tensor, matches: Tensor) -> Tensor:
        """Return the mean binary cross entropy.

        Args:
            hidden: (B, width).
            matches: (B, heads) of 1, 0, and -1 for what was not told.
        """
        losses = F.binary_cross_entropy_with_logits(self.linear(hidden).float(), matches.clamp(min=0), reduction="none")
        return losses[matches >= 0].mean()


class UnderstandingTrainer(TimedTrainer):
    """One process of the understanding stage.

    Args:
        model: As the main stage left it, in bf16 (or float32), with `special_ids`; its understanding weights but for
            the vision tower are trained in place.
        soft: The stand-in vectors; trained along.
        sampler: Of this process.
        folder: Receives `understanding.jsonl` and `understanding_state.safetensors` (rank 0), and is resumed from.
        config: Budget and mix.
    """

    def __init__(
        self, model: Backbone, *, soft: SoftTable, sampler: Sampler, folder: Path, config: UnderstandingConfig
    ) -> None:
        self.model, self.soft, self.sampler, self.config = model, soft, sampler, config
        self.before = copy.deepcopy(model).requires_grad_(False)
        model.set_training_mode(compiled=False)
        self.heads = MatchHeads(model.config.hidden_size).to(device=model.device, dtype=model.dtype)
        named = [(f"soft.{n}", p) for n, p in soft.named_parameters()]
        named += [(f"matches.{n}", p) for n, p in self.heads.named_parameters()]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not is_drawing_weight(name) and not name.startswith(_FROZEN))
            if parameter.requires_grad:
                named.append((name, parameter))
        super().__init__(named, name="understanding", folder=folder, timing=config)

    def step(self, scale: float) -> None:
        """Ask a batch of questions, take the gradient with the anchor's, update."""
        config, special_ids = self.config, self.model.require_special_ids()
        is_few = self.fraction < config.few_until
        share = config.share_partial if is_few else config.share_partial_after
        compared = [
            comparison
            for _ in range(config.num_introduced)
            for comparison in self.sampler.comparisons(config.num_compared, share_partial=share)
        ]
        samples = [comparison.segments for comparison in compared]
        samples += [self.sampler.draw(task) for task, count in config.mix.items() for _ in range(count)]
        packed = pack(samples, special_ids=special_ids, config=self.model.config, share_prefixes=True)
        packed = packed.to(self.model.device)
        hidden = self.model.run_outputs(packed, self.model.embed(packed, soft_table=self._table()))
        out = self.model.losses(packed, hidden)
        values = text_losses(
            out.ce,
            packed.ce_labels,
            writer=self.sampler.writer,
            end=special_ids.im_end,
            verdict_weight=_VERDICT_WEIGHT,
        )
        verdicts = _first_of_each(packed.ce_sample, count=len(compared))
        told_from = hidden.index_select(0, packed.outputs.ce.index_select(0, verdicts))
        values["match"] = self.heads.loss(told_from, told_from.new_tensor([c.matches for c in compared]))
        for comparison, loss in zip(compared, out.ce[verdicts].tolist(), strict=True):
            self.sampler.curriculum.note(comparison.told, loss)
        torch.autograd.backward(values["ce"] + values["match"])
        values["anchor"] = self._anchor()
        (config.anchor_weight * values["anchor"]).backward()  # type: ignore[no-untyped-call]
        average_gradients(self.optimizer.parameters)
        norm = self.optimizer.step(scale)
        self.step_index += 1
        self.recorder.add(
            step=self.step_index, grad_norm=norm, **{name: float(value.detach()) for name, value in values.items()}
        )

    def _anchor(self) -> Tensor:
        """Return how far keys and values of drawing's conditions have moved, as a share of their own square."""
        conditions: list[list[Segment]] = []
        while len(conditions) < self.config.num_anchored:
            drawn, _ = self.sampler.drawing("draw" if len(conditions) % 2 else "edit")
            if drawn:
                conditions.append(drawn)
        table = self._table().detach()
        with torch.no_grad():
            before = keys_and_values(self.before, conditions, soft_table=table)
        now = keys_and_values(self.model, conditions, soft_table=table)
        moved = [
            (new.float() - old.float()).square().mean() / old.float().square().mean()
            for layer, layer_before in zip(now, before, strict=True)
            for new, old in zip(layer, layer_before, strict=True)
        ]
        return torch.stack(moved).mean()

    def _table(self) -> Tensor:
        return self.sampler.writer.superpositions.extended(self.soft())


def _first_of_each(sample_of: Tensor, *, count: int) -> Tensor:
    """Return where each of the samples 0..count-1 (count,) begins in `sample_of` (L,), which is sorted."""
    return torch.searchsorted(sample_of.contiguous(), torch.arange(count, device=sample_of.device))
