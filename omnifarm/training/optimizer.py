"""Clip and AdamW for one concept's soft tokens, with state that is three tensors and a count.

torch.optim would do the arithmetic too, but its state belongs to an optimizer object; here it belongs to a lane, so
that a lane can leave one worker and go on, bit for bit, in another.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from omnifarm.concept.recipe import TrainingRecipe


@dataclass(kw_only=True, slots=True)
class Moments:
    """AdamW's memory of one lane."""

    first: Tensor
    """Running mean of the gradient, (C, D) float32."""
    second: Tensor
    """Running mean of its square, (C, D) float32."""

    @classmethod
    def zeros_like(cls, soft_CD: Tensor) -> "Moments":
        """Return the memory of a lane that has not stepped yet."""
        return cls(first=torch.zeros_like(soft_CD), second=torch.zeros_like(soft_CD))


def clip(grad_CD: Tensor, *, max_norm: float) -> tuple[Tensor, float]:
    """Scale a gradient down to a norm.

    Args:
        grad_CD: Gradient of one lane, float32; not changed.
        max_norm: Largest norm let through (> 0).

    Returns:
        The gradient, shared when it was short enough, and its norm before clipping. The norm is taken in float64:
        the first gradient at zero soft tokens is long enough for its square to leave float32.
    """
    norm = float(torch.linalg.vector_norm(grad_CD, dtype=torch.float64))
    if not math.isfinite(norm) or norm <= max_norm:
        return grad_CD, norm
    return grad_CD * (max_norm / norm), norm


@torch.no_grad()
def adamw_(soft_CD: Tensor, *, grad_CD: Tensor, moments: Moments, step: int, recipe: TrainingRecipe) -> None:
    """Take one AdamW step in place (decoupled weight decay, bias-corrected).

    What needs memory comes before the first change: a step that fails for want of it has changed nothing.

    Args:
        soft_CD: Soft tokens, float32; changed.
        grad_CD: Their clipped gradient.
        moments: AdamW's memory; changed.
        step: 0-based count of the steps taken before this one.
        recipe: Rates and decays.
    """
    rate = recipe.learning_rate_at(step)
    denominator = torch.empty_like(moments.second)
    if recipe.weight_decay:
        soft_CD.mul_(1.0 - rate * recipe.weight_decay)
    moments.first.lerp_(grad_CD, 1.0 - recipe.beta1)
    moments.second.mul_(recipe.beta2).addcmul_(grad_CD, grad_CD, value=1.0 - recipe.beta2)
    correction1 = 1.0 - recipe.beta1 ** (step + 1)
    correction2 = 1.0 - recipe.beta2 ** (step + 1)
    torch.sqrt(moments.second, out=denominator).div_(math.sqrt(correction2)).add_(recipe.eps)
    soft_CD.addcdiv_(moments.first, denominator, value=-rate / correction1)
