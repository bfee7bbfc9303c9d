import pytest
import torch

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.training.optimizer import Moments, adamw_, clip


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_agree_with_torch(weight_decay: float) -> None:
    recipe = TrainingRecipe(learning_rate=1e-2, warmup_steps=0, weight_decay=weight_decay)
    draws = torch.Generator().manual_seed(0)
    ours = torch.randn(5, 8, generator=draws)
    theirs = torch.nn.Parameter(ours.clone())
    reference = torch.optim.AdamW([theirs], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    moments = Moments.zeros_like(ours)
    for step in range(20):
        grad = torch.randn(5, 8, generator=draws)
        adamw_(ours, grad_CD=grad, moments=moments, step=step, recipe=recipe)
        theirs.grad = grad
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-7)


def test_a_long_gradient_is_scaled_to_the_norm() -> None:
    grad = torch.full((4, 4), 3.0)
    clipped, norm = clip(grad, max_norm=1.0)
    assert norm == pytest.approx(12.0)
    assert float(clipped.norm()) == pytest.approx(1.0)
    assert torch.all(grad == 3.0)


def test_a_short_gradient_passes_untouched() -> None:
    grad = torch.full((2, 2), 0.1)
    assert clip(grad, max_norm=1.0)[0] is grad


def test_the_norm_of_a_huge_gradient_is_finite() -> None:
    clipped, norm = clip(torch.full((33, 192), 1e30), max_norm=1.0)
    assert norm == pytest.approx(1e30 * (33 * 192) ** 0.5)
    assert float(clipped.double().norm()) == pytest.approx(1.0, rel=1e-5)
