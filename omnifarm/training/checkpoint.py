"""A lane as bytes: one safetensors object, tensors and JSON together, so that it is whole or not there.

Holds all a lane needs to go on bit for bit: soft tokens, AdamW's memory, the step (which is the data cursor and the
seed of every random draw), what the backbone said of its photographs, and the losses so far. What the lane was started from is recorded as an identity, and a
checkpoint of anything else is refused.
"""

import json
from dataclasses import fields
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.self_description import Looks
from omnifarm.errors import TrainingError
from omnifarm.training.lane import HeldOutLoss, Lane, SampleSource, StepLosses
from omnifarm.training.optimizer import Moments

SCHEMA_VERSION = 3
_HEADER = "omnifarm_lane"
_COLUMNS = tuple(column.name for column in fields(StepLosses))


def save_lane(lane: Lane, *, identity: str) -> bytes:
    """Return a lane as bytes.

    Args:
        lane: The lane, between two steps.
        identity: Digest of what it is trained from (data, recipe, backbone).
    """
    losses = torch.tensor([[getattr(one, name) for name in _COLUMNS] for one in lane.losses], dtype=torch.float64)
    header = {
        "schema_version": SCHEMA_VERSION,
        "name": lane.name,
        "identity": identity,
        "step": lane.step,
        "stopped": lane.stopped,
        "train_s": lane.train_s,
        "looks": lane.looks,
        "loss_columns": _COLUMNS,
    }
    tensors = {
        "soft": lane.soft.detach().cpu().contiguous(),
        "first": lane.moments.first.cpu().contiguous(),
        "second": lane.moments.second.cpu().contiguous(),
        "losses": losses.reshape(len(lane.losses), len(_COLUMNS)),
        "held_out_losses": torch.tensor([[one.step, one.loss] for one in lane.held_out_losses], dtype=torch.float64),
    }
    if lane.best is not None:
        tensors["best"] = lane.best.cpu().contiguous()
    return save(tensors, metadata={_HEADER: json.dumps(header)})


def load_lane(
    data: bytes,
    *,
    identity: str,
    recipe: TrainingRecipe,
    source: SampleSource,
    held_out: SampleSource | None = None,
    device: torch.device | str = "cpu",
) -> Lane:
    """Rebuild a lane from bytes.

    Args:
        data: What `save_lane` returned.
        identity: What the lane must have been trained from.
        recipe: How it is learned (part of the identity).
        source: Its samples (part of the identity).
        held_out: Samples it is measured on, if the recipe asks for it.
        device: Where its tensors go.

    Raises:
        TrainingError: The bytes are damaged, of another schema, or of another identity; going on would mix two runs.
    """
    tensors, header = _parts(data)
    if header["identity"] != identity:
        raise TrainingError(
            f"the checkpoint of {header['name']!r} belongs to {header['identity'][:12]}, expected {identity[:12]}; "
            "photographs, recipe or backbone changed: start the lane anew"
        )
    rows = tensors["losses"].tolist()
    lane = Lane(
        name=header["name"],
        recipe=recipe,
        source=source,
        soft=tensors["soft"].to(device).requires_grad_(True),
        moments=Moments(first=tensors["first"].to(device), second=tensors["second"].to(device)),
        step=header["step"],
        losses=[StepLosses(**dict(zip(header["loss_columns"], row, strict=True))) for row in rows],
        held_out=held_out,
        held_out_losses=[HeldOutLoss(step=int(row[0]), loss=row[1]) for row in tensors["held_out_losses"].tolist()],
        best=tensors["best"].to(device) if "best" in tensors else None,
        train_s=header["train_s"],
        looks=_looks_of(header),
        stopped=header["stopped"],
    )
    _require_whole(lane, tensors)
    return lane


def saved_looks(data: bytes) -> Looks:
    """Return what the backbone said of a lane's photographs when it began: asked again elsewhere, it may say otherwise.

    Args:
        data: What `save_lane` returned.

    Raises:
        TrainingError: The bytes are damaged or of another schema.
    """
    return _looks_of(_parts(data)[1])


def _looks_of(header: dict[str, Any]) -> Looks:
    return tuple((question, answer) for question, answer in header["looks"])


def _parts(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = load(data)
        header: dict[str, Any] = json.loads(_metadata(data)[_HEADER])
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise TrainingError(f"expected a lane checkpoint, found {len(data)} bytes that are none: {error}") from error
    if header.get("schema_version") != SCHEMA_VERSION:
        raise TrainingError(
            f"expected lane checkpoint schema {SCHEMA_VERSION}, found {header.get('schema_version')}; start the lane anew"
        )
    return tensors, header


def _require_whole(lane: Lane, tensors: dict[str, Tensor]) -> None:
    shapes = {name: tuple(tensors[name].shape) for name in ("soft", "first", "second", "best") if name in tensors}
    if len(set(shapes.values())) != 1 or lane.soft.shape[0] != lane.recipe.num_soft_tokens:
        raise TrainingError(
            f"expected {lane.recipe.num_soft_tokens} soft tokens with moments of the same shape, found {shapes}"
        )
    if len(lane.losses) != lane.step:
        raise TrainingError(f"expected one loss per step, found {len(lane.losses)} losses at step {lane.step}")


def _metadata(data: bytes) -> dict[str, str]:
    # The file starts with the header's length (8 bytes, little endian) and the header as JSON.
    length = int.from_bytes(data[:8], "little")
    metadata: dict[str, str] = json.loads(data[8 : 8 + length])["__metadata__"]
    return metadata
