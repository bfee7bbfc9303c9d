"""Serving a backbone of the released sizes, measured on one GPU: seconds a picture, MFU, memory, latency of replay.

    python jobs/measure_gpu_serving.py            # random bf16 weights of the 7B configuration; under 10 minutes
    python jobs/measure_gpu_serving.py --smoke    # a tiny configuration, on the CPU as well

Needs torch, transformers and safetensors, nothing else. Pictures of 512 x 512, 50 timesteps, guidance as METHOD section 4,
each of another concept, through the engine that serves; `--compiled` fuses what surrounds attention. MFU counts 2
operations per weight and token of the denoising passes against this device's own measured bf16 matrix product. Random
weights write no replay that can be read, so its latency is that of as much reading and writing: one call of 48 tokens
beside three of 16. Prints one JSON document.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from jobs.measure_gpu_training import build_model, matmul_rate, released_config, smoke_config, synchronise
from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.backbone.weights import LoadedBackbone, resolve_folder
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.serving.capacity import Capacity
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Limits
from omnifarm.store.memory import MemoryStore
from omnifarm.training.precision import weights_dtype

FINGERPRINT = "0" * 64
REPLAY_TOKENS = 48


def load_random(config: BackboneConfig, device: torch.device) -> LoadedBackbone:
    """Return a backbone with random weights behind the miniature's tokenizer, whose ids every vocabulary here holds."""
    tokenizer = BackboneTokenizer.from_folder(resolve_folder("miniature"))
    model = build_model(config, device, weights_dtype("bfloat16", device))
    model.special_ids = tokenizer.special_ids
    codec = LatentCodec(config.autoencoder, latent_patch_size=config.latent_patch_size).to(device=device)
    codec.module.requires_grad_(False)
    return LoadedBackbone(
        model=model, tokenizer=tokenizer, autoencoder=codec, config=config, fingerprint=FINGERPRINT
    )  # fmt: skip


def concepts_of(config: BackboneConfig, *, count: int) -> ConceptRepository:
    """Return a store with as many concepts of random soft tokens: c0, c1 ..."""
    repository = ConceptRepository(MemoryStore())
    draws = torch.Generator().manual_seed(0)
    for index in range(count):
        soft_tokens = SoftTokens(
            und=torch.randn(17, config.hidden_size, generator=draws) * 0.02,
            gen=torch.randn(16, config.hidden_size, generator=draws) * 0.02,
        )
        digest = tensors_digest(encode_soft_tokens(soft_tokens))
        manifest = ArtifactManifest(
            name=f"c{index}", version=digest, class_noun="dog", fingerprint=FINGERPRINT, data_digest="0" * 64,
            tensors_digest=digest, num_und=16, num_gen=16, width=config.hidden_size,
        )  # fmt: skip
        repository.commit(manifest, soft_tokens)
    return repository


def draw(engine: Engine, device: torch.device, *, count: int, size: int, options: SamplingOptions) -> dict[str, float]:
    """Draw `count` pictures at once; return seconds of one, tokens denoised a second and the most memory taken."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = engine.statistics()["step_tokens"].get("draw", 0)
    synchronise(device)
    started = time.perf_counter()
    tickets = [
        engine.submit(
            engine.door.generate(
                f"A photo of <c{index}> in the park.", size=(size, size), options=options, seed=index, replay="off"
            )
        )
        for index in range(count)
    ]
    while engine.step():
        pass
    synchronise(device)
    took = time.perf_counter() - started
    for ticket in tickets:
        ticket.result(0)
    tokens = engine.statistics()["step_tokens"]["draw"] - before
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"image_s": took / count, "tokens_per_s": tokens / took, "peak_gib": peak}


def replay_latency(engine: Engine, *, repeats: int) -> dict[str, float]:
    """Return the median seconds of one call and of three that write as many tokens in all."""
    seconds: dict[str, list[float]] = {"unified": [], "sequential": []}
    for turn in range(1 + repeats):
        for name, calls in (("unified", 1), ("sequential", 3)):
            started = time.perf_counter()
            for _ in range(calls):
                engine.ask(f"What is the favorite toy of <c{turn}>?", max_tokens=REPLAY_TOKENS // calls)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def run(*, smoke: bool, batches: list[int], steps: int, budget_s: float, compiled: bool) -> dict[str, Any]:
    """Measure every batch that the time allows, and replay."""
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, size = (smoke_config(), 32) if smoke else (released_config(), 512)
    rate = matmul_rate(device, dtype=weights_dtype("bfloat16", device), size=512 if smoke else 8192)
    loaded = load_random(config, device)
    weights = sum(
        p.numel() for name, p in loaded.model.language_model.model.layers.named_parameters()
        if p.ndim == 2 and "_moe_gen" in name
    )  # fmt: skip
    repository = concepts_of(config, count=max(*batches, 8))
    options = SamplingOptions(num_timesteps=steps)
    loaded.model.set_training_mode(compiled=compiled)
    engine = Engine(loaded, repository, limits=Limits(), capacity=Capacity(refresh_s=3600.0))
    rows: list[dict[str, Any]] = []
    for count in batches:
        row: dict[str, Any] = {"batch": count}
        rows.append(row)
        if time.perf_counter() - began > budget_s:
            row["error"] = "not measured: out of time"
            continue
        try:
            # The first round compiles, and reads prompts that are kept from then on.
            draw(engine, device, count=count, size=size, options=SamplingOptions(num_timesteps=4))
            row |= draw(engine, device, count=count, size=size, options=options)
        except torch.OutOfMemoryError:
            row["error"] = "out of memory"
            continue
        row["mfu"] = 2 * weights * row["tokens_per_s"] / rate
        sys.stderr.write(json.dumps(row) + "\n")
    latency = replay_latency(engine, repeats=5)
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "configuration": "smoke" if smoke else "released 7B sizes, random weights",
        "pixels": size,
        "timesteps": steps,
        "compiled": compiled,
        "matmul_tflops_per_s": rate / 1e12,
        "rows": rows,
        "replay_s": latency,
        "took_s": time.perf_counter() - began,
    }


def main() -> None:
    """Parse options, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a test of the script itself")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16], help="pictures drawn at once")
    parser.add_argument("--steps", type=int, default=50, help="values of the denoising schedule")
    parser.add_argument("--budget-s", type=float, default=480, help="start no measurement after this many seconds")
    parser.add_argument("--compiled", action="store_true", help="fuse what surrounds attention with torch.compile")
    options = parser.parse_args()
    report = run(
        smoke=options.smoke, batches=options.batches, steps=options.steps, budget_s=options.budget_s,
        compiled=options.compiled,
    )  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
