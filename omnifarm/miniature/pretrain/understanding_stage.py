"""The understanding stage: more questions for the understanding expert, held to what drawing reads of it.

Runs after the drawing stage. The generation expert reads the keys and values of the understanding expert, so training
one alone takes the other's reading away. Here the generation side is frozen and an anchor holds the rest:

    loss = text loss + w mean over layers, K and V of |new - old|^2 / |old|^2   on conditions of drawing

Questions are mostly whether somebody is in a picture: several candidates a sample, Yes as often as No, pictures of two
as often under either answer. Data parallel over processes; the budget is wall-clock time.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Segment, pack
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
    mix: Mapping[str, int] = field(default_factory=lambda: {"recognise": 8, "understand": 5, "watch": 2})
    """Samples of each task per step and process."""
    num_anchored: int = 10
    """Conditions of drawing per step and process that the anchor is taken on."""
    anchor_weight: float = 3.0
    """w."""
    anneal_from: float = 0.35
    """Fraction of the budget after which the rate falls."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.006, adam_rate=9e-4))
    """Rates."""
    save_every_s: float = 60.0
    """Between two states on disk."""


class UnderstandingTrainer(TimedTrainer):
    """One process of the understanding stage.

    Args:
        model: As the drawing stage left it, in bf16 (or float32), with `special_ids`; its understanding weights but for
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
        named = [(f"soft.{n}", p) for n, p in soft.named_parameters()]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not is_drawing_weight(name) and not name.startswith(_FROZEN))
            if parameter.requires_grad:
                named.append((name, parameter))
        super().__init__(named, name="understanding", folder=folder, timing=config)

    def step(self, scale: float) -> None:
        """Ask a batch of questions, take the gradient with the anchor's, update."""
        samples = [self.sampler.draw(task) for task, count in self.config.mix.items() for _ in range(count)]
        special_ids = self.model.require_special_ids()
        packed = pack(samples, special_ids=special_ids, config=self.model.config).to(self.model.device)
        out = self.model.train_forward(packed, soft_table=self._table())
        values = text_losses(
            out.ce,
            packed.ce_labels,
            writer=self.sampler.writer,
            end=special_ids.im_end,
            verdict_weight=_VERDICT_WEIGHT,
        )
        values["ce"].backward()  # type: ignore[no-untyped-call]
        values["anchor"] = self._anchor()
        (self.config.anchor_weight * values["anchor"]).backward()  # type: ignore[no-untyped-call]
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
