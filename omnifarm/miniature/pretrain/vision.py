"""The vision stage: gives the tower features that tell who is who and what they look like, before anything reads them.

Two pictures of one inhabitant at a time: linear heads read every attribute and the setting, and a contrastive loss
finds the second picture among those of all others. Only the tower is kept. With a vision tower that has not been
trained first, recognition stays at chance for the whole main stage (measured twice by earlier prototypes).

Shape letters: B pairs, P patches, V width.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from omnifarm.backbone.model import Backbone
from omnifarm.backbone.native import fast_dtype
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.backbone.vit import VisionModel, plan_images
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import LABELS, labels
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.codec import to_pixels
from omnifarm.miniature.pretrain.corpus import Group
from omnifarm.miniature.pretrain.features import PATCH, patches_of
from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, OptimizerConfig, cosine
from omnifarm.miniature.pretrain.records import Recorder, load_state, resumed_draws, save_state
from omnifarm.miniature.pretrain.sequences import VIT_GRID
from omnifarm.miniature.scene import LIGHTS, STYLES

_CHANGED = 4 / 255
_SETTINGS = (PLACES, LIGHTS, STYLES)


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """How the tower is trained."""

    budget_s: float
    """Wall-clock seconds."""
    batch_size: int = 32
    """Pairs per step."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.02, adam_rate=2e-3))
    """Rates."""
    seed: int = 0
    """Of weights and batches."""


class VisionTrainer(nn.Module):
    """The tower with the heads that teach it.

    Args:
        tower: Trained in place.
        width: V.
    """

    def __init__(self, tower: VisionModel, *, width: int) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleDict({name.replace(".", "_"): nn.Linear(width, len(v)) for name, v in LABELS.items()})
        self.settings = nn.ModuleList(nn.Linear(width, len(values)) for values in _SETTINGS)
        self.projection = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width // 2))
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def features(self, pixels: Tensor) -> Tensor:
        """Return (B, P, V) of pixels (B, 3, 96, 96)."""
        count, patches = len(pixels), VIT_GRID[0] * VIT_GRID[1]
        ids = grid_position_ids(VIT_GRID, side=VIT_GRID[1], interpolate=False).repeat(count)
        rows = patches_of(pixels, patch=PATCH).flatten(0, 1)
        hidden: Tensor = self.tower(rows, position_ids=ids, plan=plan_images([patches] * count))
        return hidden.reshape(count, patches, -1)

    def loss(self, pixels: Tensor, share: Tensor, targets: Tensor, settings: Tensor) -> Tensor:
        """Return the sum of all losses; the first and second half of the batch show the same inhabitants.

        Args:
            pixels: (2B, 3, 96, 96).
            share: (2B, P) how much of each patch is the subject.
            targets: (2B, heads) class index or -1.
            settings: (2B, 3) place, light, style.
        """
        hidden = self.features(pixels)
        weight = share[..., None].to(hidden.dtype)
        subject = (hidden * weight).sum(dim=1) / (weight.sum(dim=1) + 1e-3)
        total = hidden.new_zeros((), dtype=torch.float32)
        for column, name in enumerate(LABELS):
            applies = targets[:, column] >= 0
            if bool(applies.any()):
                logits = self.heads[name.replace(".", "_")](subject[applies]).float()
                total = total + F.cross_entropy(logits, targets[applies, column]) * applies.float().mean() / 4
        mean = hidden.mean(dim=1)
        for column, head in enumerate(self.settings):
            total = total + F.cross_entropy(head(mean).float(), settings[:, column]) / 4
        code = F.normalize(self.projection(subject).float(), dim=-1)
        first, second = code.chunk(2)
        logits = first @ second.T * self.log_scale.exp().clamp(max=50)
        same = torch.arange(len(first))
        return total + 0.5 * (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same))


def train_vision(
    model: Backbone, folder: Path, *, config: VisionConfig, pictures: NDArray[np.uint8], groups: list[Group]
) -> None:
    """Train the tower of `model` in place, or go on from the state in `folder`.

    Args:
        model: In float32; only its vision tower changes.
        folder: Receives `vision.jsonl` and `vision_state.safetensors`.
        config: Budget and rates.
        pictures: (N, V, 96, 96, 3) in the views of `corpus`.
        groups: What is on them.
    """
    torch.manual_seed(config.seed)
    _initialise(model.vit_model)
    trainer = VisionTrainer(model.vit_model, width=int(model.config.vit.hidden_size)).to(fast_dtype("cpu"))
    names = ("position", "heads", "settings", "projection")
    optimizer = MasterOptimizer(trainer.named_parameters(), config=config.optimizer, adam_only=names)
    recorder, state_path = Recorder(folder / "vision.jsonl"), folder / "vision_state.safetensors"
    spent, step = 0.0, 0
    if state_path.is_file():
        state, facts = load_state(state_path)
        optimizer.load_state_dict(state)
        spent, step = facts["spent_s"], facts["step"]
    rng = resumed_draws(config.seed, step)
    targets = torch.tensor([list(labels(group.first).values()) for group in groups])
    settings = torch.tensor([[_setting(group, view) for view in (corpus.FIRST, corpus.BOTH)] for group in groups])
    start, saved = time.monotonic() - spent, time.monotonic()
    while (fraction := (time.monotonic() - start) / config.budget_s) < 1:
        chosen = torch.from_numpy(rng.integers(0, len(groups), config.batch_size))
        pixels, share = _batch(rng, pictures, chosen)
        loss = trainer.loss(
            pixels, share, targets[chosen].repeat(2, 1), torch.cat((settings[chosen, 0], settings[chosen, 1]))
        )
        torch.autograd.backward(loss)
        norm = optimizer.step(min(1.0, (step + 1) / 80) * cosine(fraction))
        step += 1
        recorder.add(step=step, loss=float(loss.detach()), grad_norm=norm)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            recorder.write(seconds=round(saved - start, 1), skipped=optimizer.num_skipped)
            save_state(state_path, optimizer.state_dict(), step=step, spent_s=saved - start)
    recorder.write(final=True)
    save_state(state_path, optimizer.state_dict(), step=step, spent_s=config.budget_s)
    masters = dict(zip((name for name, _ in trainer.named_parameters()), optimizer.masters, strict=True))
    model.vit_model.to(torch.float32)
    with torch.no_grad():
        for name, parameter in model.vit_model.named_parameters():
            parameter.copy_(masters[f"tower.{name}"])


def _initialise(tower: VisionModel) -> None:
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.02 if "position" in name else parameter.shape[1] ** -0.5)


def _setting(group: Group, view: int) -> list[int]:
    scene = group.scenes[view]
    return [PLACES.index(scene.place), LIGHTS.index(scene.light), STYLES.index(scene.style)]


def _batch(rng: np.random.Generator, pictures: NDArray[np.uint8], chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return pixels (2B, 3, 96, 96) and subject shares (2B, P), colours and mirroring jittered."""
    rows = chosen.numpy()
    seen = np.concatenate([pictures[rows, corpus.FIRST], pictures[rows, corpus.BOTH]])
    gone = np.concatenate([pictures[rows, corpus.FIRST_GONE], pictures[rows, corpus.BOTH_GONE]])
    pixels = to_pixels(torch.from_numpy(seen))
    changed = ((pixels - to_pixels(torch.from_numpy(gone))).abs().amax(dim=1, keepdim=True) / 2 > _CHANGED).float()
    gain = torch.from_numpy(rng.uniform(0.9, 1.1, (len(seen), 3, 1, 1)).astype(np.float32))
    pixels = ((pixels + 1) * gain - 1).clamp(-1, 1)
    if rng.random() < 0.5:
        pixels, changed = pixels.flip(-1), changed.flip(-1)
    return pixels, F.avg_pool2d(changed, PATCH).flatten(1)
