"""Frozen matrix products in 8-bit floating point: half the bytes, twice the rate on GPUs that multiply them.

Weights are rounded once, a scale per output row; activations and gradients are rounded as they come, a scale per
token. Products run in `torch._scaled_mm` on CUDA devices of capability 8.9 and up; elsewhere the rounded numbers are
multiplied in the model's type, which gives the same errors and no speed: good for measuring what fp8 costs in quality.

Shape letters: N tokens, I inputs, O outputs.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from omnifarm.backbone.layers import tall
from omnifarm.errors import ConfigError

FORMAT = torch.float8_e4m3fn
"""Four bits of exponent, three of mantissa: the finer of the two 8-bit formats, for gradients too."""
_LARGEST = torch.finfo(FORMAT).max


def use_fp8(model: nn.Module) -> int:
    """Replace, in place, the language model's frozen layer projections by 8-bit ones; return how many.

    Norms, embeddings, heads, connector and vision tower keep their precision.

    Args:
        model: A `Backbone` whose weights do not require gradients.

    Raises:
        ConfigError: A weight is trainable, or its sides are not multiples of 16, which the kernels need.
    """
    layers = model.get_submodule("language_model.model.layers")
    count = 0
    for parent in list(layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Fp8Linear(child))
                count += 1
    return count


def uses_fp8(model: nn.Module) -> bool:
    """Say whether `use_fp8` was applied to a model."""
    return any(isinstance(module, Fp8Linear) for module in model.modules())


class Fp8Linear(nn.Module):
    """A frozen linear layer with an 8-bit weight.

    Args:
        linear: What it replaces.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight
        if weight.requires_grad or any(side % 16 for side in weight.shape):
            raise ConfigError(
                f"8-bit products need frozen weights whose sides are multiples of 16, found {tuple(weight.shape)}"
            )
        rounded_OI, scale_O1 = rounded(weight.detach())
        self.register_buffer("weight", rounded_OI)
        self.register_buffer("scale", scale_O1)
        self.bias = linear.bias
        self._product = _untraced()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, I) to (N, O)."""
        out = self._product(x, self.weight, self.scale)
        return out if self.bias is None else out + self.bias


@cache
def _untraced() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the product, hidden from the compiler: torch 2.13 cannot trace its own backward pass. What surrounds it is
    still fused. Made with the first layer, because torch then imports its compiler, two seconds of every process."""

    def product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return tall(lambda rows: _Product.apply(rows, weight, scale), x)  # type: ignore[no-untyped-call]

    hide = cast(Callable[[Any], Callable[[Tensor, Tensor, Tensor], Tensor]], torch.compiler.disable)
    return hide(product)


class _Product(torch.autograd.Function):
    """x W^T, and in the backward pass g W: no gradient of the weight exists."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_OI: Tensor, scale_O1: Tensor) -> Tensor:
        ctx.save_for_backward(weight_OI, scale_O1)
        x8, x_scale = rounded(x)
        return _multiply(x8, x_scale, weight_OI.t(), scale_O1.t(), dtype=x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight_OI, scale_O1 = ctx.saved_tensors
        # The weight's scale belongs to the dimension that is summed here, so it goes into the gradient first.
        (grad,) = grads
        g8, g_scale = rounded(grad * scale_O1.t().to(grad.dtype))
        ones = torch.ones(1, weight_OI.shape[1], device=grad.device)
        return _multiply(g8, g_scale, weight_OI, ones, dtype=grad.dtype), None, None


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a matrix in 8 bits and the float32 scale (rows, 1) that brings it back."""
    largest = x.abs().amax(dim=1, keepdim=True).float()
    scale = (largest / _LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
    return (x.float() / scale).to(FORMAT), scale


def _multiply(left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return left @ right, rows scaled by `left_scale` (rows, 1) and columns by `right_scale` (1, columns)."""
    if left.is_cuda and left.shape[0] and torch.cuda.get_device_capability(left.device) >= (8, 9):
        column_major = right if right.stride(0) == 1 else right.t().contiguous().t()
        product: Tensor = torch._scaled_mm(
            left, column_major, scale_a=left_scale, scale_b=right_scale.contiguous(), out_dtype=torch.bfloat16
        )
        return product.to(dtype)
    return ((left.to(dtype) @ right.to(dtype)).float() * left_scale * right_scale).to(dtype)
