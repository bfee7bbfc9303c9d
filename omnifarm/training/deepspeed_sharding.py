"""The backbone sharded by DeepSpeed ZeRO-3: parameters only, since none is trained. The one module that knows DeepSpeed.

Every layer's weights are one unit: gathered before it runs, released after, gathered again for its backward pass.
DeepSpeed is imported when it is needed, so that training without it stays possible.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.mot import MoTLayer
from omnifarm.training.lockstep import TrainForward, without_whole


def shard_zero3(config: BackboneConfig, *, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Backbone]:
    """Build a backbone of which every process of the group holds its share of room, without values.

    Args:
        config: Sizes.
        dtype: Type of the weights.
        device: Where the shares lie.

    Returns:
        The gathering module and the backbone inside it; what stays whole is on the meta device.
    """
    deepspeed = import_deepspeed(device)
    numel = sum(parameter.numel() for parameter in _layer(config).parameters())
    settings = _settings(numel, dtype=dtype, world=dist.get_world_size())
    # The type comes from the settings: given as an argument, DeepSpeed 0.19 drops it where the CPU has no float16.
    with deepspeed.zero.Init(config_dict_or_path=settings), _WithoutDrawing():
        model = Backbone(config)
    without_whole(model)
    with torch.device("meta"):
        whole = without_whole(Backbone(config))
    model.requires_grad_(False)
    module = TrainForward(model)
    deepspeed.utils.set_z3_leaf_modules(module, [MoTLayer])
    engine, *_ = deepspeed.initialize(model=module, config=settings)
    for name, part in whole.items():
        setattr(model, name, part)
    # The engine's own call expects an optimizer behind it; the module inside has all the hooks.
    return engine.module, model


def zero3_slices(model: Backbone) -> Iterator[tuple[str, Tensor, int]]:
    """Yield every sharded tensor's name, this process's flat room for it, and where in the flat tensor that begins.

    The last process's room may be longer than what is left for it.
    """
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_tensor"):
            room = parameter.ds_tensor
            yield name, room.data.view(-1), dist.get_rank() * room.numel()


def _settings(layer_numel: int, *, dtype: torch.dtype, world: int) -> dict[str, Any]:
    return {
        "train_batch_size": world,
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": {
            "stage": 3,
            # At most two layers are whole at a time, and none is kept for later: with DeepSpeed's defaults a small
            # model would end up whole in every process.
            "stage3_max_live_parameters": 2 * layer_numel,
            "stage3_max_reuse_distance": 0,
            "stage3_prefetch_bucket_size": 0,
            "stage3_param_persistence_threshold": 0,
            # It would replace torch's own linear function in the whole process.
            "memory_efficient_linear": False,
        },
    }


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed and let it use the process group that is already up. Safe to repeat."""
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed
    import deepspeed.ops

    # Where this name exists DeepSpeed does not compile its shared-memory kernel for CPUs, which takes half a minute and
    # a compiler. The name is not public: DeepSpeed's version is pinned, and a test trains through here.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return deepspeed


def _layer(config: BackboneConfig) -> nn.Module:
    with torch.device("meta"):
        return MoTLayer(config.llm, index=0)


class _WithoutDrawing(TorchFunctionMode):
    """Builds modules without drawing initial weights: they are read from a file, and drawing takes minutes."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return function(*args, **(kwargs or {}))
