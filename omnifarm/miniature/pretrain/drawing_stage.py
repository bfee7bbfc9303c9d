"""The drawing stage: gives the generation expert the time it needs, behind a frozen understanding expert.

Runs after the main stage. Each step reads a few conditions and draws many noised copies of each target, all through
`drawing`. Data parallel over processes; the budget is wall-clock time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import LatentSegment, Segment
from omnifarm.miniature.pretrain.drawing import CopiesForward, copy_times, is_drawing_weight, read_conditions
from omnifarm.miniature.pretrain.main_stage import SoftTable
from omnifarm.miniature.pretrain.optimizer import OptimizerConfig
from omnifarm.miniature.pretrain.parallel import average_gradients
from omnifarm.miniature.pretrain.sequences import LATENT_GRID
from omnifarm.miniature.pretrain.tasks import Sampler
from omnifarm.miniature.pretrain.timed import TimedTrainer

_KEPT_WEIGHT = 4.0
"""Weight of tokens that an edit leaves alone: their error is small beside that of drawn ones, and plain to see."""
_SAME = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingConfig:
    """How the drawing stage is trained."""

    budget_s: float
    """Wall-clock seconds."""
    batches: tuple[Mapping[str, int], ...] = field(default_factory=lambda: ({"draw": 16}, {"edit": 6, "draw_ref": 2}))
    """Per step and process: batches of samples a task. Tasks with conditions of similar length share a batch."""
    copies: int = 8
    """Noised copies of every target."""
    anneal_from: float = 0.4
    """Fraction of the budget after which the rate falls."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.02, adam_rate=2e-3))
    """Rates."""
    save_every_s: float = 60.0
    """Between two states on disk."""
    compiled: bool = True
    """Whether to use torch.compile."""


class DrawingTrainer(TimedTrainer):
    """One process of the drawing stage.

    Args:
        model: In bf16 (or float32), with `special_ids`; its generation weights are trained in place.
        soft: The stand-in vectors of the main stage; those of the generation expert are trained.
        sampler: Of this process.
        folder: Receives `drawing.jsonl` and `drawing_state.safetensors` (rank 0), and is resumed from.
        config: Budget and batches.
    """

    def __init__(
        self, model: Backbone, *, soft: SoftTable, sampler: Sampler, folder: Path, config: DrawingConfig
    ) -> None:
        self.model, self.soft, self.sampler, self.config = model, soft, sampler, config
        named = [(f"soft.{n}", p) for n, p in soft.named_parameters()]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_drawing_weight(name))
            if parameter.requires_grad:
                named.append((name, parameter))
        super().__init__(named, name="drawing", folder=folder, timing=config)
        self.forward = CopiesForward(model, grid=LATENT_GRID, compiled=config.compiled)

    def step(self, scale: float) -> None:
        """Draw the batches, take their gradients, update."""
        values: dict[str, float] = {}
        count = sum(sum(batch.values()) for batch in self.config.batches)
        for batch in self.config.batches:
            tasks = [task for task, number in batch.items() for _ in range(number)]
            per_sample, emphasised = self._losses(tasks)
            (emphasised.sum() / count).backward()  # type: ignore[no-untyped-call]
            for task in batch:
                chosen = [i for i, other in enumerate(tasks) if other == task]
                values[task] = float(per_sample.detach()[chosen].mean())
        average_gradients(self.optimizer.parameters)
        norm = self.optimizer.step(scale)
        self.step_index += 1
        self.recorder.add(step=self.step_index, grad_norm=norm, **values)

    def _losses(self, tasks: list[str]) -> tuple[Tensor, Tensor]:
        """Return the mean squared velocity error of every sample (B,): plain, and with what edits keep emphasised."""
        conditions, latents = zip(*(self.sampler.drawing(task) for task in tasks), strict=True)
        clean = torch.stack(latents)
        shape = (len(tasks), self.config.copies, *clean.shape[1:])
        generator = self.sampler.noise
        noise = torch.randn(shape, generator=generator)
        times = copy_times(*shape[:2], shift=self.model.config.timestep_shift, generator=generator)
        table = self.sampler.writer.superpositions.extended(self.soft())
        read = read_conditions(self.model, conditions, soft_table=table)
        velocity = self.forward(clean, noise, times, conditions=read)
        error = (velocity.float() - (noise - clean[:, None]).to(velocity.device)).square()
        per_token = error.mean(dim=(1, 3))
        kept = torch.stack([kept_tokens(c, x) for c, x in zip(conditions, latents, strict=True)]).to(per_token.device)
        return per_token.mean(dim=1), (per_token * (1 + (_KEPT_WEIGHT - 1) * kept)).mean(dim=1)


def kept_tokens(conditions: Sequence[Segment], latents: Tensor) -> Tensor:
    """Return which latent tokens (T,) of a target stand unchanged in a clean picture among its conditions, 0 or 1."""
    kept = torch.zeros(len(latents))
    for segment in conditions:
        if isinstance(segment, LatentSegment):
            kept = kept.maximum(((segment.latents - latents).square().mean(dim=-1) < _SAME).float())
    return kept
