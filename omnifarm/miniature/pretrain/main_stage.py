"""The main stage: trains language model, experts, connector and flow heads on the tasks of `tasks`.

Data parallel over processes: each draws its own samples, gradients are averaged, every process takes the same step.
The budget is wall-clock time; the rate is annealed over it, so a run ends annealed whatever the machine does.
Vision tower and codec are frozen, their outputs come from `features`.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from omnifarm.backbone.config import SpecialIds
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Segment, pack
from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, OptimizerConfig, cosine
from omnifarm.miniature.pretrain.parallel import agreed, average_gradients
from omnifarm.miniature.pretrain.records import Recorder, load_state, save_state
from omnifarm.miniature.pretrain.sequences import NUM_ALIASES, SoftRows, Writer
from omnifarm.miniature.pretrain.tasks import Sampler

ADAM_ONLY = ("embed_tokens", "lm_head", "vae2llm", "llm2vae", "time_embedder", "soft.")
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


class MainTrainer:
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
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        width = model.config.hidden_size
        self.soft = SoftTable(sampler.writer.rows, width=width, seed=config.seed).to(model.dtype)
        model.vit_model.requires_grad_(False)
        model.set_training_mode(compiled=config.compiled)
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        named += [(f"soft.{n}", p) for n, p in self.soft.named_parameters()]
        self.optimizer = MasterOptimizer(named, config=config.optimizer, adam_only=ADAM_ONLY)
        self.names = [name for name, _ in named]
        self.recorder = Recorder(folder / "main.jsonl")
        self.path = folder / "main_state.safetensors"
        self.step_index, self.spent_s = 0, 0.0
        if self.path.is_file():
            state, facts = load_state(self.path)
            self.optimizer.load_state_dict(state)
            self.step_index, self.spent_s = facts["step"], facts["spent_s"]
        self.random = random.Random(config.seed * 1000 + self.rank + self.step_index)

    def run(self) -> None:
        """Train until the budget is spent."""
        start = time.monotonic() - self.spent_s
        saved = logged = time.monotonic()
        while True:
            elapsed = agreed(time.monotonic() - start)
            fraction = elapsed / self.config.budget_s
            if fraction >= 1:
                break
            self.step(rate_scale(fraction, step=self.step_index, anneal_from=self.config.anneal_from))
            now = time.monotonic()
            if self.rank == 0 and now - logged > 20:
                logged = now
                self.recorder.write(seconds=round(elapsed, 1), skipped=self.optimizer.num_skipped)
            if self.rank == 0 and now - saved > self.config.save_every_s:
                saved = now
                self.save(elapsed)
        if self.rank == 0:
            self.recorder.write(final=True)
            self.save(self.config.budget_s)

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

    def save(self, elapsed: float) -> None:
        """Write the state that a restart goes on from."""
        self.spent_s = elapsed
        save_state(self.path, self.optimizer.state_dict(), names=self.names, step=self.step_index, spent_s=elapsed)


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


def rate_scale(fraction: float, *, step: int, anneal_from: float) -> float:
    """Return the schedule's factor: 100 warm-up steps, flat, then a cosine down to 1 % at the end of the budget."""
    warm = min(1.0, (step + 1) / 100)
    falling = cosine((fraction - anneal_from) / (1 - anneal_from)) if fraction > anneal_from else 1.0
    return warm * falling


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
