"""The judge stage: teaches the attribute reader on renders whose contents are known exactly."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from omnifarm.backbone.native import fast_dtype
from omnifarm.miniature.identity import group_of
from omnifarm.miniature.judge import (
    FILE,
    SCENE_HEADS,
    SLOT_HEADS,
    Judge,
    JudgeNetwork,
    Reading,
    scene_labels,
    slot_labels,
    spans,
)
from omnifarm.miniature.pretrain.codec import to_pixels
from omnifarm.miniature.pretrain.corpus import Group
from omnifarm.miniature.pretrain.optimizer import MasterOptimizer, OptimizerConfig, cosine
from omnifarm.miniature.pretrain.records import Recorder, load_state, resumed_draws, save_state


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """How the judge is trained."""

    budget_s: float
    """Wall-clock seconds."""
    batch_size: int = 48
    """Pictures per step."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(muon_rate=0.015, adam_rate=2e-3))
    """Rates."""
    seed: int = 0
    """Of weights and batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """What is on every picture of a corpus: (N, V, heads) and (N, V, slots, heads) class indices, -1 for nothing."""

    scene: Tensor
    slots: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, groups: list[Group]) -> "Labels":
        """Read them off the scenes."""
        scenes = [[scene_labels(scene) for scene in group.scenes] for group in groups]
        slots = [[slot_labels(scene) for scene in group.scenes] for group in groups]
        return cls(
            scene=torch.tensor([[list(one.values()) for one in row] for row in scenes], dtype=torch.int16),
            slots=torch.tensor(
                [[[list(slot.values()) for slot in one[0]] for one in row] for row in slots], dtype=torch.int16
            ),
            sizes=torch.tensor([[one[1] for one in row] for row in slots]),
        )


def train_judge(folder: Path, *, config: JudgeConfig, pictures: NDArray[np.uint8], groups: list[Group]) -> JudgeNetwork:
    """Train the judge, or go on from the state in `folder`.

    Args:
        folder: Receives `judge.jsonl` and `judge_state.safetensors`.
        config: Budget and rates.
        pictures: (N, V, 96, 96, 3).
        groups: What is on them.

    Returns:
        The trained network in float32.
    """
    torch.manual_seed(config.seed)
    network = JudgeNetwork()
    with torch.no_grad():
        network.pools.normal_(0, 144**-0.5)
    dtype = fast_dtype("cpu")
    network = network.to(dtype)
    named = list(network.named_parameters())
    optimizer = MasterOptimizer(named, config=config.optimizer, adam_only=("stem.0", "pools", "scene", "slots"))
    recorder, path = Recorder(folder / "judge.jsonl"), folder / "judge_state.safetensors"
    spent, step = 0.0, 0
    if path.is_file():
        state, facts = load_state(path)
        optimizer.load_state_dict(state)
        spent, step = facts["spent_s"], facts["step"]
    rng = resumed_draws(config.seed, step)
    labels = Labels.of(groups)
    start, saved = time.monotonic() - spent, time.monotonic()
    while (fraction := (time.monotonic() - start) / config.budget_s) < 1:
        rows = rng.integers(0, len(groups), config.batch_size)
        views = rng.integers(0, pictures.shape[1], config.batch_size)
        pixels = to_pixels(torch.from_numpy(np.stack([pictures[g, v] for g, v in zip(rows, views, strict=True)])))
        # A little blur and noise, so that soft edges of decoded pictures are nothing new.
        noise = 0.1 * torch.rand(len(pixels), 1, 1, 1) * torch.randn_like(pixels)
        if step % 3 == 0:
            pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        chosen = (torch.from_numpy(rows), torch.from_numpy(views))
        scene, slots = network((pixels + noise).to(dtype))
        loss = _loss(scene, slots, labels, chosen)
        torch.autograd.backward(loss)
        norm = optimizer.step(min(1.0, (step + 1) / 50) * cosine(fraction))
        step += 1
        recorder.add(step=step, loss=float(loss.detach()), grad_norm=norm)
        if time.monotonic() - saved > 60:
            saved = time.monotonic()
            recorder.write(seconds=round(saved - start, 1), skipped=optimizer.num_skipped)
            save_state(path, optimizer.state_dict(), step=step, spent_s=saved - start)
    recorder.write(final=True)
    save_state(path, optimizer.state_dict(), step=step, spent_s=config.budget_s)
    network = network.float()
    with torch.no_grad():
        for (_, parameter), master in zip(named, optimizer.masters, strict=True):
            parameter.data = master.clone()
    return network


def save_judge(network: JudgeNetwork, folder: Path) -> None:
    """Write a network into a miniature's folder, in bf16, whole or not at all."""
    partial = folder / f"{FILE}.partial"
    save_file(
        {name: value.detach().to(torch.bfloat16).contiguous() for name, value in network.state_dict().items()},
        str(partial),
    )
    partial.replace(folder / FILE)


def judge_accuracy(judge: Judge, *, pictures: NDArray[np.uint8], groups: list[Group]) -> dict[str, float]:
    """Return the share of right readings per head, over all views of the groups; `mean` is over attributes.

    A subject is only asked for where the number of subjects was read right; a wrong number counts as wrong.
    """
    right: dict[str, list[bool]] = {}

    def note(name: str, is_right: bool) -> None:
        right.setdefault(name, []).append(is_right)

    for index, group in enumerate(groups):
        for scene, seen in zip(group.scenes, judge.read(pictures[index]), strict=True):
            true = Reading.of(scene)
            note("count", len(seen.subjects) == len(true.subjects))
            for name in ("place", "light", "style"):
                note(name, getattr(seen, name) == getattr(true, name))
            note("item", (seen.item and seen.item.kind) == (true.item and true.item.kind))
            if true.item is not None:
                note("item_color", seen.item is not None and seen.item.color == true.item.color)
            found = seen.subjects if len(seen.subjects) == len(true.subjects) else (None,) * len(true.subjects)
            for subject, one in zip(true.subjects, found, strict=True):
                group_name = group_of(subject.noun)
                note("noun", one is not None and one.noun == subject.noun)
                for name, value in subject.attributes.items():
                    note(f"{group_name}.{name}", one is not None and one.attributes.get(name) == value)
                if group_name != "object":
                    note("look", one is not None and one.look == subject.look)
    shares = {name: sum(values) / len(values) for name, values in sorted(right.items())}
    return {"mean": sum(shares.values()) / len(shares), **shares}


def _loss(scene: Tensor, slots: Tensor, labels: Labels, chosen: tuple[Tensor, Tensor]) -> Tensor:
    total = torch.zeros(())
    targets = labels.scene[chosen].long()
    for column, name in enumerate(SCENE_HEADS):
        total = total + _cross_entropy(scene[:, spans("scene")[name]], targets[:, column])
    targets = labels.slots[chosen].long()
    for column, name in enumerate(SLOT_HEADS):
        logits = slots[..., spans("slot")[name]].flatten(0, 1)
        total = total + _cross_entropy(logits, targets[..., column].flatten())
    is_there = targets[..., 0] >= 0
    error = (slots[..., -2:].float() - labels.sizes[chosen])[is_there]
    return total + 5 * error.abs().mean()


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    # Divided by the batch and not by the rows that count: a rare head then pulls as hard as its share.
    return F.cross_entropy(logits.float(), target, ignore_index=-1, reduction="sum") / len(target)
