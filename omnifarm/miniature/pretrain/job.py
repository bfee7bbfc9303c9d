"""All stages of pre-training, one after the other, each resumable: what `jobs/pretrain_miniature.py` runs.

    render -> vision -> codec -> features -> main -> understanding -> drawing -> refine -> export -> judge

Every stage leaves a file in the working folder that says it is done; a killed job run again goes on inside the trained
stage that was interrupted (rendering and caching begin again: minutes). Shares of the wall-clock budget are fixed below.
Main, understanding and drawing stage run in several processes; who starts those is the caller's business.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.native import fast_dtype
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.errors import ConfigError
from omnifarm.miniature.pretrain.architecture import export, new_backbone, write_configs
from omnifarm.miniature.pretrain.codec import CodecConfig, load_codec_state, train_codec
from omnifarm.miniature.pretrain.corpus import Group, load_corpus, make_group, render_corpus
from omnifarm.miniature.pretrain.decoder_stage import refine_decoder
from omnifarm.miniature.pretrain.drawing_stage import DrawingConfig, DrawingTrainer
from omnifarm.miniature.pretrain.features import cached, latent_features, vision_features
from omnifarm.miniature.pretrain.judge_stage import JudgeConfig, save_judge, train_judge
from omnifarm.miniature.pretrain.main_stage import MainConfig, MainTrainer, SoftTable, load_masters
from omnifarm.miniature.pretrain.optimizer import OptimizerConfig
from omnifarm.miniature.pretrain.sequences import Writer
from omnifarm.miniature.pretrain.tasks import Features, Sampler
from omnifarm.miniature.pretrain.understanding_stage import UnderstandingConfig, UnderstandingTrainer
from omnifarm.miniature.pretrain.vision import VisionConfig, train_vision

SHARES: Mapping[str, float] = {
    "vision": 0.14,
    "codec": 0.13,
    "main": 0.20,
    "understanding": 0.20,
    "drawing": 0.23,
    "refine": 0.04,
    "judge": 0.06,
}
"""Share of the budget per trained stage; rendering and caching take what they take."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobConfig:
    """One pre-training."""

    out: Path
    """Working folder; the finished backbone is in `out/weights`."""
    budget_s: float
    """Wall-clock seconds of the trained stages together."""
    num_groups: int = 4000
    """Groups of ten pictures to train on."""
    num_held_out: int = 200
    """Groups of held-out inhabitants for the curves; at least 64."""
    processes: int = 2
    """Processes of the main, the understanding and the drawing stage, each with its own samples."""
    device: str = "cpu"
    """Where these three compute."""
    seed: int = 1
    """Of the corpus."""
    compiled: bool = True
    """Whether main and drawing stage use torch.compile."""


Stage = Callable[[JobConfig], None]
"""What one process of a stage does, inside a process group if there are several."""


def alone(stage: Stage, config: JobConfig) -> None:
    """Run a stage in this process."""
    stage(config)


def run_job(config: JobConfig, *, spread: Callable[[Stage, JobConfig], None] = alone) -> Path:
    """Run every stage that is not done yet; return the folder of the backbone.

    Args:
        config: The pre-training.
        spread: Runs a stage in `config.processes` processes that form a `torch.distributed` group, each calling it with
            `config`, and raises when one of them fails.

    Raises:
        ConfigError: The working folder belongs to another corpus.
    """
    out, weights = config.out, config.out / "weights"
    _same_corpus(config)
    write_configs(weights, codec=None)
    _render(config)
    pictures, held_out = load_corpus(out / "train.npy"), load_corpus(out / "held_out.npy")
    groups = _groups(config)
    if not (out / "vit.safetensors").is_file():
        model = new_backbone(weights)
        budget = VisionConfig(budget_s=SHARES["vision"] * config.budget_s)
        train_vision(model, out, config=budget, pictures=pictures, groups=groups)
        _save(out / "vit.safetensors", model.vit_model.state_dict())
    if not (out / "codec.done").is_file():
        train_codec(
            out,
            config=CodecConfig(budget_s=SHARES["codec"] * config.budget_s),
            pictures=pictures,
            held_out=held_out,
        )
        (out / "codec.done").touch()
    codec = load_codec_state(out, pictures=pictures)
    cached(out / "latents.safetensors", lambda: latent_features(codec, pictures))
    if not (out / "features.safetensors").is_file():
        model = new_backbone(weights)
        model.vit_model.load_state_dict(load_file(str(out / "vit.safetensors")))
        cached(out / "features.safetensors", lambda: vision_features(model.to(fast_dtype("cpu")), pictures))
    for name, stage in (("main", train_main), ("understanding", train_understanding), ("drawing", train_drawing)):
        done = out / f"{name}.done"
        if not done.is_file():
            spread(stage, config)
            done.touch()
    if not (out / "ae.safetensors").is_file():
        refining = CodecConfig(
            budget_s=SHARES["refine"] * config.budget_s, optimizer=OptimizerConfig(muon_rate=0.006, adam_rate=1e-3)
        )
        refine_decoder(out, config=refining, codec=codec, pictures=pictures, held_out=held_out)
        codec.save(out / "ae.partial")
        (out / "ae.partial").replace(out / "ae.safetensors")
    codec.load(out / "ae.safetensors")
    _export(config, codec)
    judging = JudgeConfig(budget_s=SHARES["judge"] * config.budget_s)
    save_judge(train_judge(out, config=judging, pictures=pictures, groups=groups), weights)
    return weights


def _same_corpus(config: JobConfig) -> None:
    """Refuse a working folder whose pictures were made for other sentences: labels would be wrong without a sign."""
    last = config.num_groups - 1
    digest = hashlib.sha256(repr([make_group(config.seed, index) for index in (0, last)]).encode()).hexdigest()
    asked = {"seed": config.seed, "groups": config.num_groups, "held_out": config.num_held_out, "world": digest[:16]}
    path = config.out / "corpus.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if found is None and (config.out / "train.npy").is_file():
        found = "pictures of unknown origin"
    if found not in (None, asked):
        raise ConfigError(
            f"expected {config.out} to hold the corpus {asked}, found {found}; a folder goes on only with the seed, numbers "
            "and code it was begun with: choose another --out",
            out=str(config.out),
        )
    config.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked), encoding="utf-8")


def _render(config: JobConfig) -> None:
    for split, name, count in (
        ("heldout", "held_out", config.num_held_out),
        ("train", "train", config.num_groups),
    ):
        path, partial = config.out / f"{name}.npy", config.out / f"{name}.partial.npy"
        if not path.is_file():
            side = "heldout" if split == "heldout" else "train"
            render_corpus(partial, num_groups=count, seed=config.seed, split=side)  # type: ignore[arg-type]
            partial.replace(path)


def _groups(config: JobConfig) -> list[Group]:
    return [make_group(config.seed, index) for index in range(config.num_groups)]


def _open_stage(config: JobConfig) -> tuple[Backbone, Sampler]:
    """Return the model as far as it is trained, float32, and this process's samples."""
    torch.set_num_threads(1)
    out, weights = config.out, config.out / "weights"
    model = new_backbone(weights)
    model.vit_model.load_state_dict(load_file(str(out / "vit.safetensors")))
    features = Features(
        vit=load_file(str(out / "features.safetensors"))["features"],
        mean=load_file(str(out / "latents.safetensors"))["features"],
    )
    tokenizer = BackboneTokenizer.from_folder(weights)
    model.special_ids = tokenizer.special_ids
    # A resumed run must not repeat the samples of its first part, nor a process those of another.
    rank = dist.get_rank() if dist.is_initialized() else 0
    seed = int(time.time()) * 64 + rank
    return model, Sampler(groups=_groups(config), features=features, writer=Writer(tokenizer), seed=seed)


def train_main(config: JobConfig) -> None:
    """Run one process of the main stage."""
    model, sampler = _open_stage(config)
    MainTrainer(
        model.to(device=config.device, dtype=fast_dtype(config.device)),
        sampler=sampler,
        special_ids=model.require_special_ids(),
        folder=config.out,
        config=MainConfig(budget_s=SHARES["main"] * config.budget_s, compiled=config.compiled),
    ).run()


def train_understanding(config: JobConfig) -> None:
    """Run one process of the understanding stage."""
    model, sampler = _open_stage(config)
    soft = SoftTable(sampler.writer.rows, width=model.config.hidden_size, seed=0)
    load_masters(config.out / "main_state.safetensors", model, soft=soft)
    UnderstandingTrainer(
        model.to(device=config.device, dtype=fast_dtype(config.device)),
        soft=soft.to(device=config.device, dtype=fast_dtype(config.device)),
        sampler=sampler,
        folder=config.out,
        config=UnderstandingConfig(budget_s=SHARES["understanding"] * config.budget_s),
    ).run()


def train_drawing(config: JobConfig) -> None:
    """Run one process of the drawing stage."""
    model, sampler = _open_stage(config)
    soft = SoftTable(sampler.writer.rows, width=model.config.hidden_size, seed=0)
    for stage in ("main", "understanding"):
        load_masters(config.out / f"{stage}_state.safetensors", model, soft=soft)
    DrawingTrainer(
        model.to(device=config.device, dtype=fast_dtype(config.device)),
        soft=soft.to(device=config.device, dtype=fast_dtype(config.device)),
        sampler=sampler,
        folder=config.out,
        config=DrawingConfig(budget_s=SHARES["drawing"] * config.budget_s, compiled=config.compiled),
    ).run()


def _export(config: JobConfig, codec: LatentCodec) -> None:
    weights = config.out / "weights"
    model = new_backbone(weights)
    model.vit_model.load_state_dict(load_file(str(config.out / "vit.safetensors")))
    for stage in ("main", "understanding", "drawing"):
        load_masters(config.out / f"{stage}_state.safetensors", model)
    export(weights, model=model, codec=codec)


def _save(path: Path, state: Mapping[str, Tensor]) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: value.detach().contiguous() for name, value in state.items()}, str(partial))
    partial.replace(path)
