"""Data parallelism of the pre-training stages: every process has its own samples, all take the same step."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; a missing one counts as zero."""
    if not dist.is_initialized():
        return
    flat = torch.cat([_gradient(parameter).flatten().float() for parameter in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for parameter in parameters:
        count = parameter.numel()
        parameter.grad = flat[start : start + count].view_as(parameter).to(parameter.dtype)
        start += count


def agreed(elapsed: float) -> float:
    """Return rank 0's clock on every rank, so that all stop at the same step."""
    if not dist.is_initialized():
        return elapsed
    shared = torch.tensor([elapsed], dtype=torch.float64)
    dist.broadcast(shared, src=0)
    return float(shared)


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
