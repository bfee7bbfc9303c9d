"""Training steps of a backbone of the released sizes, measured on one GPU: seconds, tokens, MFU, memory.

    python jobs/measure_gpu_training.py            # random bf16 weights of the 7B configuration; under 10 minutes
    python jobs/measure_gpu_training.py --smoke    # a tiny configuration, on the CPU as well

Needs torch, transformers and safetensors, nothing else. Samples are made up in the released sizes (512 x 512 pictures,
the default task mix, batch 8 per lane, 33 soft tokens); pictures come encoded, as in training. MFU counts 4 operations
per weight and token against this device's own measured bf16 matrix product. Prints one JSON document.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import Qwen2Config, SiglipVisionConfig

from omnifarm.backbone.attention_kernels import GPU_KERNELS, fastest_kernel
from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.fp8 import use_fp8
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Pack, pack
from omnifarm.backbone.segments import LatentSegment, Segment, SoftSlot, TextSegment, VitSegment
from omnifarm.training.precision import weights_dtype

SOFT_ROWS = 33
STEPS_OF_A_CONCEPT = 2000


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta}


def released_config() -> BackboneConfig:
    """Return the released 7B sizes."""
    return BackboneConfig(
        llm=Qwen2Config(
            vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
            num_key_value_heads=4, rope_parameters=_rope(1e6), rms_norm_eps=1e-6, tie_word_embeddings=False,
        ),
        vit=SiglipVisionConfig(
            hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16, image_size=980,
            patch_size=14,
        ),
    )  # fmt: skip


def smoke_config() -> BackboneConfig:
    """Return sizes that a CPU steps in a moment."""
    return BackboneConfig(
        llm=Qwen2Config(
            vocab_size=1024, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rope_parameters=_rope(1e4), tie_word_embeddings=False,
        ),
        vit=SiglipVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=64
        ),
        max_latent_size=8,
        vit_max_patches_per_side=8,
    )  # fmt: skip


def lane_samples(config: BackboneConfig, *, lane: int, draws: torch.Generator, size: int) -> list[list[Segment]]:
    """Return one lane's batch: 3 questions (two on one picture), 3 drawings (two of one caption), 2 edits.

    Args:
        config: Sizes.
        lane: Counted from 0; its soft tokens begin at row 33 * lane.
        draws: Randomness.
        size: Side of the square pictures in pixels.
    """
    vocabulary, patch = int(config.llm.vocab_size) - 8, config.latent_downsample
    slots = tuple(
        SoftSlot(offset=row, row=SOFT_ROWS * lane + row, expert="und" if row < 17 else "gen")
        for row in range(SOFT_ROWS)
    )
    system = TextSegment(ids=(1,) * (SOFT_ROWS + 3), soft=slots)
    vit_side = min(config.vit_transform.max_size, size) // config.vit_transform.stride
    latent_side = size // patch

    def text(length: int, *, has_loss: bool = False) -> TextSegment:
        return TextSegment(
            ids=tuple(torch.randint(0, vocabulary, (length,), generator=draws).tolist()), has_loss=has_loss
        )

    def vit() -> VitSegment:
        features = torch.randn(vit_side**2, int(config.vit.hidden_size), generator=draws)
        return VitSegment(features=features, grid=(vit_side, vit_side))

    def latents() -> torch.Tensor:
        return torch.randn(latent_side**2, config.latent_dim, generator=draws)

    def clean() -> LatentSegment:
        return LatentSegment(latents=latents(), grid=(latent_side, latent_side))

    def noised() -> LatentSegment:
        u = float(torch.randn((), generator=draws))
        return LatentSegment(latents=latents(), grid=(latent_side, latent_side), timestep_logit=u, noise=latents())

    photo, caption = vit(), text(16)
    return [
        [system, photo, text(12), text(20, has_loss=True)],
        [system, photo, text(12), text(20, has_loss=True)],
        [system, text(12), text(20, has_loss=True)],
        [system, caption, noised()],
        [system, caption, noised()],
        [system, text(16), noised()],
        [system, clean(), vit(), text(16), noised()],
        [system, clean(), vit(), text(16), noised()],
    ]


def make_pack(config: BackboneConfig, *, lanes: int, share: bool, size: int) -> Pack:
    """Return the pack of some lanes."""
    draws = torch.Generator().manual_seed(0)
    last = int(config.llm.vocab_size) - 1
    ids = SpecialIds(im_start=last, im_end=last - 1, vision_start=last - 2, vision_end=last - 3)
    samples = [row for lane in range(lanes) for row in lane_samples(config, lane=lane, draws=draws, size=size)]
    return pack(samples, special_ids=ids, config=config, share_prefixes=share)


def build_model(config: BackboneConfig, device: torch.device, dtype: torch.dtype) -> Backbone:
    """Return a frozen model with random weights on the device; the vision tower is not needed and stays tiny."""
    slim = BackboneConfig(
        llm=config.llm, max_latent_size=config.max_latent_size,
        vit_max_patches_per_side=config.vit_max_patches_per_side,
        vit=SiglipVisionConfig(**{**config.vit.to_dict(), "num_hidden_layers": 1}),
    )  # fmt: skip
    with torch.device("meta"):
        model = Backbone(slim).eval()
    model = model.to(dtype).to_empty(device=device)
    model.vit_pos_embed.reset()
    model.latent_pos_embed.reset()
    draws = torch.Generator(device=device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.02, generator=draws)
            else:
                parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model.requires_grad_(False)


def step(model: Backbone, packed: Pack, table: torch.Tensor) -> torch.Tensor:
    """Run forward and backward to the soft tokens; return their gradient."""
    output = model.train_forward(packed, soft_table=table)
    (gradient,) = torch.autograd.grad(output.ce.mean() + output.mse.mean(), [table])
    return gradient


def measure(model: Backbone, packed: Pack, *, lanes: int, repeats: int) -> dict[str, float]:
    """Return the best step time of a few, and the most memory it took."""
    device = model.device
    packed = packed.to(device)
    table = (0.02 * torch.randn(SOFT_ROWS * lanes, model.config.hidden_size, device=device)).requires_grad_()
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(1 + repeats):
        started = time.perf_counter()
        gradient = step(model, packed, table)
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    if not bool(torch.isfinite(gradient).all()):
        raise SystemExit("the gradient is not finite; the measurement means nothing")
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"step_s": min(seconds[1:]), "peak_gib": peak}


def matmul_rate(device: torch.device, *, dtype: torch.dtype, size: int) -> float:
    """Return operations per second of a square product."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(6):
        synchronise(device)
        started = time.perf_counter()
        left @ right
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(*, smoke: bool, lanes: list[int], repeats: int, budget_s: float, compiled: bool) -> dict[str, Any]:
    """Measure every combination that the time allows."""
    began = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config, size = (smoke_config(), 32) if smoke else (released_config(), 512)
    # The smoke mode also runs on CPUs that do not multiply bf16.
    dtype = weights_dtype("bfloat16", device)
    rate = matmul_rate(device, dtype=dtype, size=512 if smoke else 8192)
    model = build_model(config, device, dtype)
    weights = sum(
        p.numel() for name, p in model.language_model.model.layers.named_parameters()
        if p.ndim == 2 and "_moe_gen" not in name
    )  # fmt: skip
    llm = config.llm
    heads, key_heads = int(llm.num_attention_heads), int(llm.num_key_value_heads or llm.num_attention_heads)
    kernel, kernel_s = fastest_kernel(
        make_pack(config, lanes=1, share=True, size=size).plan.to(device), num_heads=heads, num_key_heads=key_heads,
        width=int(llm.hidden_size) // heads, dtype=dtype, device=device,
        num_layers=int(llm.num_hidden_layers),
        among=GPU_KERNELS if device.type == "cuda" else ("matmul", "fused", "varlen"),
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for precision in ("bf16", "fp8"):
        if precision == "fp8":
            use_fp8(model)
            gc.collect()
        for number in lanes:
            for share in (True, False):
                row: dict[str, Any] = {"precision": precision, "lanes": number, "shared": share}
                rows.append(row)
                if time.perf_counter() - began > budget_s:
                    row["error"] = "not measured: out of time"
                    continue
                packed = make_pack(config, lanes=number, share=share, size=size)
                for recompute in (False, True):
                    model.set_training_mode(
                        attention_kernel=kernel, compiled=compiled, gradient_checkpointing=recompute
                    )
                    # Out here the failed attempt's tensors are gone with its exception.
                    torch.cuda.empty_cache()
                    try:
                        row |= {"recompute": recompute, **measure(model, packed, lanes=number, repeats=repeats)}
                        break
                    except torch.OutOfMemoryError:
                        continue
                else:
                    row["error"] = "out of memory, recomputing activations too"
                    continue
                per_s = packed.num_tokens / row["step_s"]
                row |= {
                    "tokens": packed.num_tokens,
                    "tokens_per_s": per_s,
                    "mfu": 4 * weights * per_s / rate,
                    "minutes_per_concept": STEPS_OF_A_CONCEPT * row["step_s"] / number / 60,
                }
                sys.stderr.write(json.dumps(row) + "\n")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "configuration": "smoke" if smoke else "released 7B sizes, random weights",
        "matmul_tflops_per_s": rate / 1e12,
        "attention_kernel": kernel,
        "attention_kernel_s": kernel_s,
        "compiled": compiled,
        "rows": rows,
        "took_s": time.perf_counter() - began,
    }


def main() -> None:
    """Parse options, measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a test of the script itself")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4], help="lanes per pack to measure")
    parser.add_argument("--repeats", type=int, default=3, help="measured steps of each combination")
    parser.add_argument("--budget-s", type=float, default=480, help="start no measurement after this many seconds")
    parser.add_argument("--compiled", action="store_true", help="fuse what surrounds attention with torch.compile")
    options = parser.parse_args()
    report = run(
        smoke=options.smoke, lanes=options.lanes, repeats=options.repeats, budget_s=options.budget_s,
        compiled=options.compiled,
    )  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
