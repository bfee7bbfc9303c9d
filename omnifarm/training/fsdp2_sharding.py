"""The backbone sharded by PyTorch's own fully_shard (FSDP2): a second way to gather, under the same contract."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.training.lockstep import TrainForward, without_whole


def shard_fsdp2(config: BackboneConfig, *, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Backbone]:
    """Build a backbone of which every process of the group holds its share of room, without values.

    Args:
        config: Sizes.
        dtype: Type of the weights.
        device: Where the shares lie.

    Returns:
        The gathering module and the backbone inside it; what stays whole is on the meta device.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    with torch.device("meta"):
        model = Backbone(config).to(dtype).requires_grad_(False)
    module = TrainForward(model)
    whole = without_whole(model)
    language_model = model.language_model
    for part in (*language_model.model.layers, language_model.model.embed_tokens, language_model.lm_head):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
    fully_shard(module, mesh=mesh, reshard_after_forward=True)
    module.to_empty(device=device)
    for name, part in whole.items():
        setattr(model, name, part)
    return module, model


def fsdp2_slices(model: Backbone) -> Iterator[tuple[str, Tensor, int]]:
    """Yield every sharded tensor's name, this process's flat room for it, and where in the flat tensor that begins."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            rows = -(-parameter.shape[0] // dist.get_world_size())
            row_numel = parameter.shape[1:].numel()
            yield name, parameter.to_local().view(-1), dist.get_rank() * rows * row_numel
