"""The training engine beside the plain loop: the same concepts, samples and steps on every side, in one run.

Sides stand on a ladder from *plain* to *ours*: each adds one thing to the side before it, so that the gains multiply to
the whole speedup. Two more sides show the plain loop at its best: in bf16, and in bf16 compiled. Sides take turns step
by step, so that a machine whose speed drifts favours none.
"""

import gc
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from omnifarm.backbone.native import multiplies_bf16
from omnifarm.backbone.packing import pack
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSamples
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.concept.spec import ConceptSpec
from omnifarm.miniature.benchmark import write_concept_folders
from omnifarm.training.lane import Lane
from omnifarm.training.loop import Trainer
from omnifarm.training.objective import lane_loss
from omnifarm.training.plain import OneRowPerCopy, UncachedImages, plain_layer, plain_step
from omnifarm.training.precision import precision_of, weights_dtype
from omnifarm.training.sharding import Replicated

LADDER = {
    "plain": "float32, eager, one concept at a time, padded, nothing shared or kept",
    "caching": "pictures encoded once",
    "padding": "samples packed instead of padded",
    "sharing": "equal prefixes computed once",
    "precision": "bf16 weights, where the machine multiplies them",
    "compile": "compiled between attentions",
    "lanes": "all concepts in one pack: ours",
}
"""The sides from plain to ours; each is the one before it and the thing it is named after."""
AT_ITS_BEST = {"plain_bf16": "plain in bf16", "plain_compiled": "plain in bf16, compiled"}
"""The plain loop with what costs its author nothing."""


@dataclass(kw_only=True, slots=True, eq=False)
class Side:
    """One way of training, with lanes of its own."""

    lanes: list[Lane]
    """One per concept."""
    step: Callable[[], None]
    """Advances all lanes by one optimizer step."""
    trainer: Trainer | None = None
    """The engine, where this side uses it."""
    prepared: "Preparation | None" = None
    """What was spent once on the lanes' pictures, before the first step."""
    training_steps: int = 260
    """Steps of a whole training, which share it; the miniature's own recipe takes as many."""
    seconds: list[float] = field(default_factory=list)
    """Measured steps."""
    cpu_seconds: list[float] = field(default_factory=list)
    """The same steps in seconds of computing, over all threads: what a busy machine distorts least."""

    @property
    def step_s(self) -> float:
        """Median seconds of a step of all lanes, and its share of what was spent once."""
        return statistics.median(self.seconds) + (self.prepared.seconds / self.training_steps if self.prepared else 0.0)

    @property
    def step_cpu_s(self) -> float:
        """Median seconds of computing of a step of all lanes, and its share of what was spent once."""
        return statistics.median(self.cpu_seconds) + (
            self.prepared.cpu_seconds / self.training_steps if self.prepared else 0.0
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """Encoding every picture of all lanes once, as the engine does before a lane's first step."""

    seconds: float
    """Of waiting."""
    cpu_seconds: float
    """Of computing."""


def measure(*, num_concepts: int, rounds: int, threads: int, log: Callable[[str], None]) -> dict[str, Any]:
    """Train all sides in turn and compare them.

    Args:
        num_concepts: Held-out persons of the drawn world (>= 2).
        rounds: Measured steps of every side, after two unmeasured ones (the first compiles).
        threads: CPU threads.
        log: Takes a line of progress.

    Returns:
        JSON values, see `omnifarm perf train`.
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        concepts = Path(folder) / "concepts"
        write_concept_folders(concepts, seed=0, num_persons=num_concepts, num_pets=0, num_objects=0)
        specs = [spec for _, spec in load_concepts(str(concepts)) if isinstance(spec, ConceptSpec)]
        sides = _sides(specs, steps=2 + rounds)
        for turn in range(2 + rounds):
            for name, side in sides.items():
                gc.collect()
                started, cpu_started = time.perf_counter(), time.process_time()
                side.step()
                took_s, took_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
                if turn >= 2:
                    side.seconds.append(took_s)
                    side.cpu_seconds.append(took_cpu_s)
                log(f"turn {turn + 1} of {2 + rounds}: {name} took {took_s:.2f} s")
        final_loss = {
            name: _held_out_loss(sides[side].lanes, specs)
            for name, side in (("plain", "plain"), ("plain_bf16", "plain_bf16"), ("ours", "lanes"))
        }
        return _report(sides, final_loss=final_loss, threads=threads)


def _sides(specs: list[ConceptSpec], *, steps: int) -> dict[str, Side]:
    in_float32 = load_backbone("miniature")
    # As trainings load it: a machine without products in bf16 has no such gain.
    fast = weights_dtype("bfloat16", "cpu")
    in_bf16, compiled = load_backbone("miniature", dtype=fast), load_backbone("miniature", dtype=fast)
    compiled.model.set_training_mode(compiled=True)
    fast_layer = torch.compile(plain_layer, dynamic=True)

    kept = {one.model.dtype: _prepare(specs, one) for one in (in_float32, in_bf16)}

    def plain(
        backbone: LoadedBackbone, *, is_cached: bool = False, layer: Callable[..., torch.Tensor] = plain_layer
    ) -> Side:
        images, prepared = kept[backbone.model.dtype] if is_cached else (UncachedImages(backbone), None)
        lanes = _lanes(specs, backbone=backbone, images=images, steps=steps, is_split=True)

        def step() -> None:
            for lane in lanes:
                plain_step(lane, backbone=backbone, layer=layer)

        return Side(lanes=lanes, step=step, prepared=prepared)

    def packed(backbone: LoadedBackbone, *, share_prefixes: bool = True, lanes_per_pack: int = 1) -> Side:
        images, prepared = kept[backbone.model.dtype]
        lanes = _lanes(specs, backbone=backbone, images=images, steps=steps, is_split=not share_prefixes)
        trainer = Trainer(
            Replicated(backbone.model),
            special_ids=backbone.special_ids,
            config=backbone.config,
            lanes_per_pack=lanes_per_pack,
            share_prefixes=share_prefixes,
        )
        for lane in lanes:
            trainer.add(lane)

        def step() -> None:
            trainer.step()

        return Side(lanes=lanes, step=step, trainer=trainer, prepared=prepared)

    return {
        "plain": plain(in_float32),
        "plain_bf16": plain(in_bf16),
        "plain_compiled": plain(in_bf16, layer=fast_layer),
        "caching": plain(in_float32, is_cached=True),
        "padding": packed(in_float32, share_prefixes=False),
        "sharing": packed(in_float32),
        "precision": packed(in_bf16),
        "compile": packed(compiled),
        "lanes": packed(compiled, lanes_per_pack=len(specs)),
    }


def _prepare(specs: list[ConceptSpec], backbone: LoadedBackbone) -> tuple[PreparedImages, Preparation]:
    images = PreparedImages(backbone)
    started, cpu_started = time.perf_counter(), time.process_time()
    for spec in specs:
        images.get_all(spec)
    return images, Preparation(seconds=time.perf_counter() - started, cpu_seconds=time.process_time() - cpu_started)


def _lanes(
    specs: list[ConceptSpec], *, backbone: LoadedBackbone, images: PreparedImages, steps: int, is_split: bool
) -> list[Lane]:
    usual = TrainingRecipe.from_json(backbone.config.defaults.get("recipe", {}))
    # Steps are compared: what a backbone of another precision says of the photographs must not make other samples.
    changed = {"precision": precision_of(backbone.model), "steps": steps, "is_self_described": False}
    recipe = usual.with_overrides(changed)
    layout = SoftTokenLayout.of_recipe(recipe)
    lanes = []
    for spec in specs:
        samples = ConceptSamples(spec, recipe=recipe, backbone=backbone, images=images, layout=layout)
        source = OneRowPerCopy(samples) if is_split else samples
        start = torch.zeros(layout.num_rows, backbone.config.hidden_size)
        lanes.append(Lane.start(spec.name, recipe=recipe, source=source, soft_CD=start))
    return lanes


@torch.no_grad()
def _held_out_loss(lanes: list[Lane], specs: list[ConceptSpec]) -> float:
    """Return the mean loss of learned soft tokens on samples of later steps, in float32 whatever trained them."""
    backbone = load_backbone("miniature")
    fresh = _lanes(specs, backbone=backbone, images=PreparedImages(backbone), steps=lanes[0].step, is_split=False)
    losses = []
    for lane, like in zip(lanes, fresh, strict=True):
        for step in range(lane.step, lane.step + 2):
            samples = like.source.draw(step)
            packed = pack(
                [sample.segments for sample in samples],
                special_ids=backbone.special_ids, config=backbone.config, share_prefixes=True,
            )  # fmt: skip
            output = backbone.model.train_forward(packed, soft_table=lane.soft)
            tasks = [sample.task for sample in samples]
            losses.append(float(lane_loss(output, tasks=tasks, samples=range(len(samples)), recipe=lane.recipe).total))
    return statistics.fmean(losses)


def _report(sides: dict[str, Side], *, final_loss: dict[str, float], threads: int) -> dict[str, Any]:
    ours, padded = sides["lanes"], sides["padding"]
    assert ours.trainer is not None
    assert padded.trainer is not None
    names = list(LADDER)
    gains = {name: sides[before].step_s / sides[name].step_s for before, name in itertools.pairwise(names)}
    best = min(("plain", *AT_ITS_BEST), key=lambda name: sides[name].step_s)
    steps = ours.lanes[0].step
    tokens_per_step = ours.trainer.count.num_tokens / steps
    rows_per_step = sum(len(lane.source.draw(steps)) for lane in padded.lanes)
    types = {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if multiplies_bf16("cpu") else {})
    rates = {name: matmul_flops(dtype) for name, dtype in types.items()}
    model_flops = 4 * active_parameters() * tokens_per_step
    return {
        "speedup_vs_plain": round(sides["plain"].step_s / ours.step_s, 3),
        "speedup_vs_best_plain": round(sides[best].step_s / ours.step_s, 3),
        "best_plain": best,
        "gains": {name: round(gain, 3) for name, gain in gains.items()},
        "final_loss": {name: round(loss, 5) for name, loss in final_loss.items()},
        "tokens_per_s": round(tokens_per_step / ours.step_s, 1),
        "rows_per_s": round(rows_per_step / ours.step_s, 2),
        "mfu": round(model_flops / ours.step_s / max(rates.values()), 4),
        "share_of_tokens_saved": round(1 - ours.trainer.count.num_tokens / padded.trainer.count.num_tokens, 4),
        "step_s": {name: round(side.step_s, 4) for name, side in sides.items()},
        "cpu": {
            "speedup_vs_plain": round(sides["plain"].step_cpu_s / ours.step_cpu_s, 3),
            "speedup_vs_best_plain": round(sides[best].step_cpu_s / ours.step_cpu_s, 3),
            "step_s": {name: round(side.step_cpu_s, 4) for name, side in sides.items()},
        },
        "preparing_s": None if ours.prepared is None else round(ours.prepared.seconds, 2),
        "concepts": len(ours.lanes),
        "steps": steps,
        "matmul_gflops_per_s": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "hardware": hardware(threads),
    }


def active_parameters() -> int:
    """Return the numbers every token of the miniature is multiplied with: one expert of all layers, no embedding."""
    core = load_backbone("miniature").model.language_model.model
    return sum(p.numel() for name, p in core.layers.named_parameters() if p.ndim == 2 and "_moe_gen" not in name)


def matmul_flops(dtype: torch.dtype, *, size: int = 2048, repeats: int = 5) -> float:
    """Return the measured floating-point operations per second of a square matrix product, the best of a few."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


def hardware(threads: int) -> dict[str, Any]:
    """Describe the machine, and whether it has bf16 matrix units."""
    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "flags":
                flags = set(value.split())
            elif key.strip() == "model name":
                model = value.strip()
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "amx_bf16": "amx_bf16" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "onednn_max_cpu_isa": os.environ.get("ONEDNN_MAX_CPU_ISA", "default"),
        "torch": torch.__version__,
    }
