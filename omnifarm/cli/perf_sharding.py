"""Sharded against unsharded training, measured: the same lanes over a random backbone, in real processes on this CPU.

One process holds the whole backbone and trains all lanes; then a cell of several processes shares it and trains the
same lanes, a different number of them and of steps in each. What is compared is everything a lane holds: soft tokens,
both moments (so every gradient), every loss.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path
from shutil import copyfile

import torch
from safetensors.torch import load, save_file

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.cli.local_cluster import free_port
from omnifarm.cli.sharding_process import TIMEOUT_S, Plan
from omnifarm.errors import ConfigError, TrainingError
from omnifarm.miniature.benchmark import FEW, write_concept_folders
from omnifarm.training.lockstep import WHOLE
from omnifarm.training.precision import DTYPES, weights_dtype
from omnifarm.training.sharded_backbone import weights_bytes

_CONFIGS = ("extra_config.json", "vit_config.json", "ae.safetensors", "tokenizer.json", "tokenizer_config.json")
_TEXTS = ("vocab.json", "merges.txt")


def measure_sharding(
    layouts: tuple[str, ...] = ("zero3", "fsdp2"),
    *,
    num_ranks: int = 2,
    num_layers: int = 8,
    precision: str = "float32",
) -> dict[str, dict[str, float]]:
    """Measure sharded layouts against a whole copy.

    Args:
        layouts: Which.
        num_ranks: Processes of the sharded cell (>= 2).
        num_layers: Layers of the random backbone, 6.4 million numbers each.
        precision: Type of the weights.

    Returns:
        Per layout: `max_abs_diff` over soft tokens, moments and losses, `weights_bytes`, and as parts of that size
        `rest_memory_fraction` and `peak_memory_fraction` of the largest rank (at rest after training; at the worst
        moment, activations included), `loading_memory_fraction` of the largest rank while loading,
        `host_memory_fraction` of all ranks together at rest, `expected_fraction`, what a rank should hold at rest, and
        `read_fraction`, what all ranks read from the disk, of which 1.0 is rank 0's reading for the fingerprint.

    Raises:
        ConfigError: There is no such layout or precision, or too few processes to share anything.
        TrainingError: A process failed; the message holds the end of what it printed.
    """
    if num_ranks < 2 or precision not in DTYPES or not set(layouts) <= {"zero3", "fsdp2"}:
        raise ConfigError(
            f"expected layouts zero3 or fsdp2, at least 2 processes and a precision of {', '.join(DTYPES)}; "
            f"found {', '.join(layouts)}, {num_ranks}, {precision!r}"
        )
    dtype = weights_dtype(precision, "cpu")
    with tempfile.TemporaryDirectory(prefix="omf-") as name:
        root = Path(name)
        backbone, expected = _write_backbone(root / "backbone", num_layers=num_layers, num_ranks=num_ranks)
        write_concept_folders(root / "concepts", seed=0, num_persons=4, num_pets=0, num_objects=0, sizes=FEW)
        concepts = sorted(path.name for path in (root / "concepts").iterdir())
        plan = Plan(
            backbone=str(backbone),
            sharding="replicated",
            concepts=str(root / "concepts"),
            num_ranks=1,
            # Of several ranks, the first has two packs a step, the second one, and the others have nothing.
            lanes=[concepts[:3], concepts[3:]],
            recipe={
                "steps": 2,
                "batch_size": 3,
                "learning_rate": 1e-3,
                "warmup_steps": 1,
                "precision": precision,
                # Begins with rows of the embedding, which a shared backbone has to fetch.
                "init": "class_word",
                # Passes without learning, while another process learns.
                "held_out_photos": 1,
                "held_out_every": 1,
            },
            out="",
        )
        _run(plan, root / "whole")
        size = weights_bytes(str(backbone), dtype=dtype)
        report = {}
        for layout in layouts:
            ranks = _run(replace(plan, sharding=layout, num_ranks=num_ranks), root / layout)
            own = {key: [rank[key] for rank in ranks] for key in ranks[0]}
            report[layout] = {
                "max_abs_diff": max(_difference(root / "whole", root / layout, name) for name in concepts),
                "weights_bytes": size,
                "rest_memory_fraction": round(max(own["rest_bytes"]) / size, 4),
                "expected_fraction": round(expected, 4),
                "loading_memory_fraction": round(max(own["loading_bytes"]) / size, 4),
                "peak_memory_fraction": round(max(own["peak_bytes"]) / size, 4),
                "host_memory_fraction": round(sum(own["rest_bytes"]) / size, 4),
                "read_fraction": round(sum(own["bytes_read"]) / (backbone / "ema.safetensors").stat().st_size, 4),
            }
        return report


def _write_backbone(folder: Path, *, num_layers: int, num_ranks: int) -> tuple[Path, float]:
    """Write a random backbone of the miniature's shape, but larger; return it and the part of it a rank should hold."""
    folder.mkdir()
    source = Path(str(files("omnifarm"))) / "miniature" / "weights"
    for name in (*_CONFIGS, *_TEXTS):
        copyfile(source / name, folder / name)
    sizes = json.loads((source / "llm_config.json").read_text())
    sizes |= {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": num_layers}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8}
    (folder / "llm_config.json").write_text(json.dumps(sizes))
    model = Backbone(BackboneConfig.from_folder(folder))
    draws = torch.Generator().manual_seed(0)
    model.initialise(std=0.02, generator=draws)
    with torch.no_grad():
        # A zero velocity head would hide every gradient of the drawing losses.
        model.llm2vae.weight.normal_(0.0, 0.02, generator=draws)
    tensors = model.state_dict()
    save_file(tensors, folder / "ema.safetensors")
    numel = {name: tensor.numel() for name, tensor in tensors.items()}
    whole = (*(f"{name}." for name in WHOLE), "vit_pos_embed.", "latent_pos_embed.")
    shared = sum(count for name, count in numel.items() if not name.startswith(whole))
    return folder, 1 - (1 - 1 / num_ranks) * shared / sum(numel.values())


def _run(plan: Plan, out: Path) -> list[dict[str, int]]:
    """Run the processes of one cell; return each one's numbers."""
    out.mkdir()
    plan = replace(plan, out=str(out))
    (out / "plan.json").write_text(json.dumps(asdict(plan)))
    environment = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        # Freed blocks go back to the system at once, so that what is measured is what is held.
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "2",
    }
    logs = [out / f"rank{rank}.log" for rank in range(plan.num_ranks)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-m", "omnifarm.cli.sharding_process", str(out / "plan.json"), str(rank)]
        with log.open("wb") as sink:
            processes.append(subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=2 * TIMEOUT_S) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            f"{plan.num_ranks} processes ({plan.sharding}) did not end within {2 * TIMEOUT_S} s; is the machine busy?"
        ) from error
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        failed = next(rank for rank, code in enumerate(codes) if code)
        raise TrainingError(
            f"process {failed} of {plan.num_ranks} ({plan.sharding}) ended with code {codes[failed]}; "
            f"the end of its output:\n{logs[failed].read_text(errors='replace')[-2000:]}"
        )
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(plan.num_ranks)]


def _difference(whole: Path, sharded: Path, name: str) -> float:
    """Return the largest difference between two trainings of one lane; a loss that neither measured differs by 0."""
    ours, theirs = (load((folder / f"{name}.lane").read_bytes()) for folder in (whole, sharded))
    pairs = [(ours[key].nan_to_num(nan=-1.0), theirs[key].nan_to_num(nan=-1.0)) for key in ours if ours[key].numel()]
    return max(float((one - other).abs().max()) for one, other in pairs)
