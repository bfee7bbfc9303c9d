"""Prefixes laid out once give the losses and gradients of samples laid out apart."""

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnifarm.backbone.packing import Start, pack
from omnifarm.backbone.segments import LatentSegment, SoftSlot, TextSegment, VitSegment
from omnifarm.errors import ConfigError
from tests.unit.training.conftest import SPECIAL_IDS, WIDTH

_draws = torch.Generator().manual_seed(3)
SYSTEMS = [
    TextSegment(
        ids=(0,) * 5,
        soft=tuple(SoftSlot(offset=i, row=5 * lane + i, expert="und" if i < 3 else "gen") for i in range(5)),
    )
    for lane in range(2)
]
PICTURES = [VitSegment(grid=(2, 2), features=torch.randn(4, 16, generator=_draws)) for _ in range(2)]
LATENTS = [torch.randn(4, 32, generator=_draws) for _ in range(2)]
TEXTS = [TextSegment(ids=ids) for ids in ((1,), (2, 3), (1, 2, 3, 4))]
ANSWERS = [TextSegment(ids=ids, has_loss=True) for ids in ((5,), (6, 7))]

conditions = st.one_of(
    st.sampled_from(PICTURES),
    st.sampled_from(TEXTS),
    st.sampled_from(LATENTS).map(lambda rows: LatentSegment(latents=rows, grid=(2, 2))),
    st.sampled_from(PICTURES).map(lambda picture: dataclasses.replace(picture, dropped=True)),
    st.sampled_from(TEXTS).map(lambda text: dataclasses.replace(text, dropped=True)),
)
endings = st.one_of(
    st.sampled_from(ANSWERS).map(lambda answer: [answer]),
    st.lists(st.tuples(st.sampled_from(LATENTS), st.floats(-2, 2)), min_size=1, max_size=2).map(
        lambda targets: [
            LatentSegment(latents=rows, grid=(2, 2), timestep_logit=u, noise=rows.flip(0)) for rows, u in targets
        ]
    ),
)
samples = st.tuples(st.sampled_from(SYSTEMS), st.lists(conditions, max_size=3), endings).map(
    lambda parts: [parts[0], *parts[1], *parts[2]]
)


def _losses_and_gradient(model, batch, *, share):
    table = torch.randn(10, WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    packed = pack(batch, special_ids=SPECIAL_IDS, config=model.config, share_prefixes=share)
    out = model.train_forward(packed, soft_table=table)
    weights = torch.linspace(0.5, 1.5, len(batch))
    total = (out.ce * weights[out.ce_sample]).sum() + (out.mse.mean(dim=1) * weights[out.mse_sample]).sum()
    (gradient,) = torch.autograd.grad(total, [table])
    return packed, out, gradient


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(samples, min_size=2, max_size=6))
def test_a_tree_gives_the_losses_and_gradients_of_its_paths(model, batch) -> None:
    apart, expected, expected_gradient = _losses_and_gradient(model, batch, share=False)
    tree, found, gradient = _losses_and_gradient(model, batch, share=True)
    assert tree.num_tokens + tree.num_shared == apart.num_tokens
    assert tree.rope_after == apart.rope_after
    torch.testing.assert_close(found.ce, expected.ce, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.mse, expected.mse, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=2e-5, rtol=1e-4)


def test_every_shared_token_is_laid_out_once(model) -> None:
    question = [SYSTEMS[0], PICTURES[0]]
    batch = [[*question, TEXTS[0], ANSWERS[0]], [*question, TEXTS[1], ANSWERS[0]], [SYSTEMS[1], TEXTS[0], ANSWERS[0]]]
    packed, _, _ = _losses_and_gradient(model, batch, share=True)
    first = 7 + 6 + 3 + 3
    assert packed.sample_lens == (first, 4 + 3, 7 + 3 + 3)
    assert packed.num_tokens == sum(packed.sample_lens)
    assert packed.num_shared == 13


def test_what_is_learned_is_never_shared(model) -> None:
    same = [SYSTEMS[0], TEXTS[0], ANSWERS[0]]
    packed, out, _ = _losses_and_gradient(model, [same, same], share=True)
    assert len(packed.ce_index) == 2 * len(ANSWERS[0].ids) + 2
    assert out.ce_sample.bincount().tolist() == [2, 2]


def test_equal_pictures_in_different_tensors_are_not_taken_for_the_same(model) -> None:
    copy = dataclasses.replace(PICTURES[0], features=PICTURES[0].features.clone())
    packed, _, _ = _losses_and_gradient(
        model, [[SYSTEMS[0], PICTURES[0], ANSWERS[0]], [SYSTEMS[0], copy, ANSWERS[0]]], share=True
    )
    assert packed.sample_lens == (7 + 6 + 3, 6 + 3)


def test_cached_contexts_do_not_share_again(model) -> None:
    with pytest.raises(ConfigError, match="training packs only"):
        pack([[TEXTS[0]]], special_ids=SPECIAL_IDS, config=model.config, starts=[Start()], share_prefixes=True)
