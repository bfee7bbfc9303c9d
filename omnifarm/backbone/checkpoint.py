"""The weights file of a backbone folder: what it must hold, how it is read, how it is identified.

Reading is strict: every tensor of the model, nothing else, each with its own shape. Only the two fixed position
tables may be absent, because a formula gives them (BAGEL specification 5.3).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig, rope_theta
from omnifarm.backbone.latents import WEIGHTS_FILE as AUTOENCODER_FILE
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.positions import sincos_table
from omnifarm.errors import WeightsError

WEIGHTS_FILES = ("ema.safetensors", "model.safetensors")
"""Names of the weights in a backbone folder, first match wins."""
_CHUNK_BYTES = 1 << 24


def weights_file(folder: Path) -> Path:
    """Return the weights file of a backbone folder.

    Raises:
        WeightsError: There is none.
    """
    for name in WEIGHTS_FILES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder} must hold one of {', '.join(WEIGHTS_FILES)}, found neither")


def load_model(folder: Path, *, config: BackboneConfig, dtype: torch.dtype, device: torch.device | str) -> Backbone:
    """Build the model of a folder and fill it, one tensor in memory at a time besides the model itself.

    Args:
        folder: Backbone folder.
        config: From the same folder.
        dtype: Type of all weights.
        device: Where they go.

    Returns:
        The frozen model.

    Raises:
        WeightsError: Names every missing, extra or wrongly shaped tensor.
    """
    path = weights_file(folder)
    with torch.device("meta"):
        model = Backbone(config)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_shapes(path, expected=expected)
    values: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping: it only looks like one)
            values[name] = file.get_tensor(name).to(dtype=dtype, device=device)
    for name in _optional_tables(expected):
        if name not in values:
            rows, width = expected[name]
            values[name] = sincos_table(round(rows**0.5), width=width).to(dtype=dtype, device=device)
    model.load_state_dict(values, assign=True)
    return model.requires_grad_(False).eval()


def check_shapes(path: Path, *, expected: dict[str, tuple[int, ...]]) -> None:
    """Compare the header of a safetensors file with the names and shapes a model needs.

    Raises:
        WeightsError: Names every missing, extra or wrongly shaped tensor.
    """
    found = {name: tuple(entry["shape"]) for name, entry in read_header(path)[0].items()}
    problems = [
        f"missing {name} {shape}"
        for name, shape in expected.items()
        if name not in found and name not in _optional_tables(expected)
    ]
    problems += [f"extra {name} {shape}" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} must have shape {shape}, found {found[name]}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        listing = "\n  ".join(problems)
        raise WeightsError(
            f"{path} does not match its configuration, {len(problems)} tensors differ:\n  {listing}\n"
            "Check that llm_config.json, vit_config.json and the weights come from the same release",
            problems=problems,
        )


def fingerprint(folder: Path, *, config: BackboneConfig) -> str:
    """Return the identity of a backbone: sha256 over sizes, constants and every number of model and autoencoder.

    It does not depend on the type weights are loaded in, on suggestions (`config.defaults`) or on file order.

    Raises:
        WeightsError: A weights file is missing or damaged.
    """
    digest = hashlib.sha256(json.dumps(_sizes(config), sort_keys=True).encode())
    for path in (weights_file(folder), folder / AUTOENCODER_FILE):
        if path.is_file():
            stat = path.stat()
            digest.update(_tensor_digest(path, stat.st_size, stat.st_mtime_ns))
    return digest.hexdigest()


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the tensor entries of a safetensors file and the offset of its data.

    Raises:
        WeightsError: The file is missing or is no safetensors file.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # validates header, offsets and file length
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} must be a complete safetensors file: {error}") from error
    entries.pop("__metadata__", None)
    return entries, 8 + size


@lru_cache(maxsize=8)
def _tensor_digest(path: Path, size: int, modified_ns: int) -> bytes:
    """Digest names, shapes, types and bytes in the order of names; size and time only key the cache."""
    digest = hashlib.sha256()
    entries, data_start = read_header(path)
    with path.open("rb") as file:
        for name in sorted(entries):
            entry = entries[name]
            start, end = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            file.seek(data_start + start)
            for chunk in _chunks(file, end - start):
                digest.update(chunk)
    return digest.digest()


def _chunks(file: Any, length: int) -> Iterator[bytes]:
    while length:
        chunk = file.read(min(length, _CHUNK_BYTES))
        if not chunk:
            raise WeightsError(f"{file.name} ended early")
        length -= len(chunk)
        yield chunk


def _sizes(config: BackboneConfig) -> dict[str, Any]:
    """Return what the numbers of the weights mean, without anything that depends on library versions."""
    llm, vit = config.llm, config.vit
    own: dict[str, Any] = {}
    for field in fields(config):
        if field.name not in ("llm", "vit", "defaults"):
            value: Any = getattr(config, field.name)
            own[field.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    llm_names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    vit_names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size")
    return {
        **own,
        "llm": {name: getattr(llm, name) for name in (*llm_names, "vocab_size", "rms_norm_eps")}
        | {"rope_theta": rope_theta(llm)},
        "vit": {
            name: getattr(vit, name)
            for name in (*vit_names, "patch_size", "num_channels", "hidden_act", "layer_norm_eps")
        },
    }


def _optional_tables(expected: dict[str, tuple[int, ...]]) -> list[str]:
    return [name for name in expected if name.endswith(".pos_embed")]
