"""From a name to a backbone laid out over the processes of a cell.

A sharded backbone is read from disk once in all: every process reads its own run of every tensor and no other, and one
process reads what only the fingerprint needs. Host memory therefore does not grow with the number of processes.
"""

import logging
import os
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from omnifarm.backbone.checkpoint import check_shapes, fingerprint, read_header, weights_file
from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.weight_slices import WeightSlices
from omnifarm.backbone.weights import LoadedBackbone, load_backbone, resolve_folder
from omnifarm.errors import ConfigError
from omnifarm.logs import event
from omnifarm.training.deepspeed_sharding import shard_zero3, zero3_slices
from omnifarm.training.fsdp2_sharding import fsdp2_slices, shard_fsdp2
from omnifarm.training.lockstep import Lockstep
from omnifarm.training.sharding import Replicated, Sharding, ShardingName, choose_sharding

_logger = logging.getLogger(__name__)

_BACKENDS = {"zero3": (shard_zero3, zero3_slices), "fsdp2": (shard_fsdp2, fsdp2_slices)}


def open_backbone(
    name_or_folder: str, *, sharding: str, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> tuple[LoadedBackbone, Sharding]:
    """Load a backbone, this process's share of it or all of it. Every process of the cell must call it.

    Args:
        name_or_folder: As in `load_backbone`; readable by every process.
        sharding: "auto", or the name of a layout.
        dtype: Type of the weights.
        device: Where this process's weights go.

    Returns:
        The backbone (the language model of a sharded one cannot be called by itself) and its layout.

    Raises:
        WeightsError: The backbone cannot be loaded.
        ConfigError: Its layout is unknown, does not fit, or needs processes that are not there.
    """
    device = torch.device(device)
    num_ranks = dist.get_world_size() if dist.is_initialized() else 1
    chosen = choose_sharding(
        sharding,
        weights_bytes=weights_bytes(name_or_folder, dtype=dtype),
        free_bytes=_least_free_bytes(device),
        num_ranks=num_ranks,
    )
    event(_logger, "sharding_chosen", wanted=sharding, chosen=chosen, num_ranks=num_ranks)
    if chosen == "replicated":
        backbone = load_backbone(name_or_folder, dtype=dtype, device=device)
        return backbone, Replicated(backbone.model)
    if not dist.is_initialized():
        raise ConfigError(f"sharding {chosen} needs the processes of a cell; use replicated in a single process")
    loader = ShareLoader(chosen)
    backbone = load_backbone(name_or_folder, dtype=dtype, device=device, loader=loader)
    event(_logger, "shares_loaded", sharding=chosen, rank=dist.get_rank(), bytes_read=loader.bytes_read)
    lockstep = Lockstep(
        loader.gathering,
        model=backbone.model,
        weights=weights_file(resolve_folder(name_or_folder)),
        special_ids=backbone.special_ids,
        config=backbone.config,
    )
    return backbone, lockstep


def weights_bytes(name_or_folder: str, *, dtype: torch.dtype) -> int:
    """Return the size of a backbone's weights in a type, from the file's header alone.

    Raises:
        WeightsError: There is no such backbone.
    """
    entries, _ = read_header(weights_file(resolve_folder(name_or_folder)))
    return sum(torch.Size(entry["shape"]).numel() for entry in entries.values()) * dtype.itemsize


class ShareLoader:
    """Reads this process's share of a backbone; use it once.

    Args:
        sharding: Who will gather the shares.
    """

    def __init__(self, sharding: ShardingName) -> None:
        self._shard, self._slices = _BACKENDS[sharding]
        self.gathering: torch.nn.Module
        """Runs the training forward; there once `model` was called."""
        self.bytes_read = 0
        """Bytes of weights that this process read."""

    def model(self, folder: Path, *, config: BackboneConfig, dtype: torch.dtype, device: torch.device) -> Backbone:
        """Build the model and fill this process's share of it.

        Raises:
            WeightsError: The file does not fit the configuration.
        """
        with torch.device("meta"):
            expected = {name: tuple(tensor.shape) for name, tensor in Backbone(config).state_dict().items()}
        path = weights_file(folder)
        check_shapes(path, expected=expected)
        self.gathering, model = self._shard(config, dtype=dtype, device=device)
        with torch.no_grad(), WeightSlices(path) as weights:
            sharded = set()
            for name, room, start in self._slices(model):
                end = min(start + len(room), torch.Size(weights.shape(name)).numel())
                values = weights.flat(name, start=start, end=end)
                room[: len(values)].copy_(values)
                room[len(values) :].zero_()
                sharded.add(name)
            _fill_whole(model, weights, but=sharded, dtype=dtype, device=device)
            self.bytes_read = weights.bytes_read
        return model.requires_grad_(False).eval()

    def fingerprint(self, folder: Path, *, config: BackboneConfig) -> str:
        """Return the identity of the backbone, which one process reads and tells the others."""
        digest = torch.zeros(32, dtype=torch.uint8)
        if dist.get_rank() == 0:
            digest = torch.frombuffer(bytearray.fromhex(fingerprint(folder, config=config)), dtype=torch.uint8)
        backend_device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        digest = digest.to(backend_device)
        dist.broadcast(digest, src=0)
        return bytes(digest.tolist()).hex()


def _fill_whole(
    model: Backbone, weights: WeightSlices, *, but: set[str], dtype: torch.dtype, device: torch.device
) -> None:
    """Fill what every process holds: the encoder of pictures and the fixed position tables."""
    model.vit_pos_embed.to(dtype=dtype, device=device)
    model.latent_pos_embed.to(dtype=dtype, device=device)
    for table in (model.vit_pos_embed, model.latent_pos_embed):
        table.reset()
    values = {}
    for name, tensor in model.state_dict().items():
        if name not in but and name in weights:
            values[name] = weights.flat(name).reshape(tensor.shape).to(dtype=dtype, device=device)
    model.load_state_dict(values, strict=False, assign=True)


def _least_free_bytes(device: torch.device) -> int:
    """Return the memory that is free for one process, on the device of the cell that has least."""
    if device.type == "cuda":
        free_bytes = torch.cuda.mem_get_info(device)[0]
    else:
        free_bytes = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not dist.is_initialized():
        return free_bytes
    least = torch.tensor(free_bytes, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(least)
