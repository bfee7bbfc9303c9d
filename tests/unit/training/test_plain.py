"""The packed engine is the plain loop's mathematics: same losses, same gradients, same steps."""

import dataclasses

import pytest
import torch

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import pack
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.training.plain import OneRowPerCopy, plain_forward, plain_layer
from tests.unit.training.conftest import SPECIAL_IDS, WIDTH, MadeUp


@pytest.mark.parametrize("step", range(3))
def test_the_packed_engine_gives_the_plain_loops_losses_and_gradients(
    model: Backbone, config: BackboneConfig, recipe: TrainingRecipe, step: int
) -> None:
    source = MadeUp(config, recipe=dataclasses.replace(recipe, batch_size=5), seed=2)
    samples = source.draw(step)
    # A second noised copy behind the last drawing's condition: one row of its own in the plain loop.
    *first, last = samples[-1].segments
    copy = dataclasses.replace(last, timestep_logit=0.3, noise=last.noise.flip(0))
    samples = [*samples[:-1], dataclasses.replace(samples[-1], segments=[*first, last, copy])]

    class Drawn:
        def draw(self, step: int):  # type: ignore[no-untyped-def]
            return samples

    rows = [one.segments for one in OneRowPerCopy(Drawn()).draw(step)]
    assert len(rows) == len(samples) + 1
    table = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    apart = pack(rows, special_ids=SPECIAL_IDS, config=config)
    plain = plain_forward(model, apart, soft_table=table, layer=plain_layer)
    shared = pack([one.segments for one in samples], special_ids=SPECIAL_IDS, config=config, share_prefixes=True)
    ours = model.train_forward(shared, soft_table=table)
    assert shared.num_tokens < apart.num_tokens
    torch.testing.assert_close(ours.ce, plain.ce, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.mse, plain.mse, atol=1e-5, rtol=1e-5)
    (expected,) = torch.autograd.grad(plain.ce.sum() + plain.mse.sum(), [table])
    (found,) = torch.autograd.grad(ours.ce.sum() + ours.mse.sum(), [table])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
