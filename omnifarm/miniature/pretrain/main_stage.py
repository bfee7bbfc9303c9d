"""The main stage: trains language model, experts, connector and flow heads on the tasks of `tasks`.

Data parallel over processes: each draws its own samples, gradients are averaged, every process takes the same step.
The budget is wall-clock time; the rate is annealed over it, so a run ends annealed whatever the machine does.
Vision tower and codec are frozen, their outputs come from `features`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from omnifarm.backbone.config import SpecialIds
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Segment, pack
from omnifarm.miniature.pretrain.optimizer import OptimizerConfig
from omnifarm.miniature.pretrain.parallel import average_gradients
from omnifarm.miniature.pretrain.records import load_state
from omnifarm.miniature.pretrain.sequences import NUM_ALIASES, SoftRows, Writer
from omnifarm.miniature.pretrain.tasks import Sampler
from omnifarm.miniature.pretrain.timed import TimedTrainer

_END_WEIGHT = 0.2
_NUM_NOISE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class MainConfig:
    """How the main stage is trained."""

    budget_s: float
    """Wall-clock seconds."""
    mix: Mapping[str, int] = field(
        default_factory=lambda: {"understand": 5, "watch": 2, "draw": 8, "draw_ref": 2, "edit": 4}
    )
    """Samples of each task per step and process."""
    flow_weight: float = 2.0
    """Weight of the velocity loss against the text loss."""
    anneal_from: float = 0.4
    """Fraction of the budget after which the rate falls."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.02, adam_rate=3e-3))
    """Rates."""
    save_every_s: float = 60.0
    """Between two states on disk."""
    compiled: bool = False
    """Whether to use torch.compile."""
    seed: int = 0
    """Of samples and weights."""


class SoftTable(nn.Module):
    """Vectors of the `soft` introductions: trained along, never exported.

    Aliases and attribute values are learned; zeros and noise rows are constants.
    """

    def __init__(self, rows: SoftRows, *, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.alias = nn.Parameter(0.1 * torch.randn(NUM_ALIASES, width, generator=generator))
        count = rows.num_rows - NUM_ALIASES - 1 - _NUM_NOISE
        self.attribute = nn.Parameter(0.1 * torch.randn(count, width, generator=generator))
        self.noise: Tensor
        self.register_buffer("noise", 0.05 * torch.randn(_NUM_NOISE, width, generator=generator))

    def forward(self) -> Tensor:
        """Return the table (rows, width)."""
        zero = self.noise.new_zeros(1, self.noise.shape[1])
        return torch.cat((self.alias, zero, self.noise, self.attribute))


class MainTrainer(TimedTrainer):
    """One process of the main stage.

    Args:
        model: In bf16 (or float32); trained in place, all but the vision tower.
        sampler: Of this process.
        special_ids: Frame tokens.
        folder: Receives `main.jsonl` and `main_state.safetensors` (rank 0), and is resumed from.
        config: Budget and mix.
    """

    def __init__(
        self, model: Backbone, *, sampler: Sampler, special_ids: SpecialIds, folder: Path, config: MainConfig
    ) -> None:
        self.model, self.sampler, self.special_ids, self.config = model, sampler, special_ids, config
        width = model.config.hidden_size
        self.soft = SoftTable(sampler.writer.rows, width=width, seed=config.seed).to(model.dtype)
        model.vit_model.requires_grad_(False)
        model.set_training_mode(compiled=config.compiled)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        named += [(f"soft.{n}", p) for n, p in self.soft.named_parameters()]
        super().__init__(named, name="main", folder=folder, timing=config)

    def step(self, scale: float) -> None:
        """Draw a batch, take the gradient, update."""
        tasks = [task for task, count in self.config.mix.items() for _ in range(count)]
        if self.sampler.features.mean is None:
            tasks = [task for task in tasks if task in ("understand", "watch")]
        samples = [self.sampler.draw(task) for task in tasks]
        values = self._losses(samples, tasks)
        torch.autograd.backward(values["loss"])
        average_gradients(self.optimizer.parameters)
        norm = self.optimizer.step(scale)
        self.step_index += 1
        self.recorder.add(
            step=self.step_index, grad_norm=norm, **{name: float(value.detach()) for name, value in values.items()}
        )

    def _losses(self, samples: list[list[Segment]], tasks: list[str]) -> dict[str, Tensor]:
        packed = pack(samples, special_ids=self.special_ids, config=self.model.config).to(self.model.device)
        table = self.sampler.writer.superpositions.extended(self.soft())
        out = self.model.train_forward(packed, soft_table=table)
        values: dict[str, Tensor] = {}
        loss = out.mse.new_zeros(())
        if len(out.ce):
            values |= text_losses(out.ce, packed.ce_labels, writer=self.sampler.writer, end=self.special_ids.im_end)
            loss = loss + values["ce"]
        if len(out.mse):
            per_token = out.mse.mean(dim=1)
            values["flow"] = per_token.mean()
            for task in ("draw", "draw_ref", "edit"):
                chosen = torch.tensor([i for i, t in enumerate(tasks) if t == task], device=out.mse_sample.device)
                of_task = torch.isin(out.mse_sample, chosen)
                if bool(of_task.any()):
                    values[f"flow_{task}"] = per_token[of_task].mean()
            loss = loss + self.config.flow_weight * values["flow"]
        values["tokens"] = torch.tensor(float(packed.num_tokens))
        values["loss"] = loss
        return values


def text_losses(
    ce: Tensor, labels: Tensor, *, writer: Writer, end: int, verdict_weight: float = 2.0
) -> dict[str, Tensor]:
    """Return the weighted mean loss `ce` of answers, and `ce_verdict`, the plain mean of Yes and No where there are any.

    Args:
        ce: (L,) loss of every token to be predicted.
        labels: (L,) these tokens.
        writer: Knows how Yes and No are written.
        end: The token that ends an answer; it counts for little.
        verdict_weight: What Yes and No count beside other words.
    """
    verdicts = torch.tensor([writer.encode("Yes")[0], writer.encode("No")[0]], device=labels.device)
    verdict = torch.isin(labels, verdicts)
    weight = torch.where(verdict, verdict_weight, torch.where(labels == end, _END_WEIGHT, 1.0))
    values = {"ce": (ce * weight).sum() / weight.sum()}
    if bool(verdict.any()):
        values["ce_verdict"] = ce[verdict].mean()
    return values


def load_masters(path: Path, model: Backbone, *, soft: SoftTable | None = None) -> int:
    """Write the float32 masters of a saved state into a float32 model, and into `soft`; return the state's step."""
    state, facts = load_state(path)
    parameters = dict(model.named_parameters())
    if soft is not None:
        parameters |= {f"soft.{name}": parameter for name, parameter in soft.named_parameters()}
    with torch.no_grad():
        for index, name in enumerate(facts["names"]):
            if name in parameters:
                parameters[name].copy_(state[f"master.{index}"])
    return int(facts["step"])
