"""Every attention kernel gives what a dense softmax over the written-out visibility gives, and its gradients."""

import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from omnifarm.backbone import varlen_attention
from omnifarm.backbone.attention import AttentionGroup, AttentionPlan, Visibility, plan_attention
from omnifarm.backbone.attention_kernels import KERNELS, MaskedMatmul, fastest_kernel, prepare_attention
from omnifarm.backbone.step import plan_rows
from omnifarm.errors import ConfigError

LENGTHS = (5, 23, 40)
"""Three sequences whose rows lie interleaved; the second also sees the first, as behind a shared prefix."""


def tree() -> tuple[list[Visibility], torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    rows = torch.split(torch.randperm(total, generator=draws), LENGTHS)
    dense = torch.zeros(total, total, dtype=torch.bool)
    sequences = []
    for index, own in enumerate(rows):
        keys = torch.cat((rows[0], own)) if index == 1 else own
        mask = torch.rand(len(own), len(keys), generator=draws) < 0.5
        mask[:, -len(own) :] |= torch.eye(len(own), dtype=torch.bool)
        dense[own[:, None], keys[None]] = mask
        sequences.append(Visibility(query_rows=own, key_rows=keys, mask=mask if index else None))
        if not index:
            dense[own[:, None], keys[None]] = True
    return sequences, dense


def operands(key_heads: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [
        torch.randn(sum(LENGTHS), heads, 16, generator=draws).requires_grad_() for heads in (4, key_heads, key_heads)
    ]


def gradients(mixed: torch.Tensor, parts: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weights = torch.linspace(0.5, 1.5, mixed.numel()).view_as(mixed)
    return torch.autograd.grad((mixed * weights).sum(), parts)


@pytest.mark.parametrize("name", ["matmul", "fused"])
def test_a_plan_whose_rows_are_in_order_needs_no_map_back(name: str) -> None:
    """Texts decoded together: one query each, against rooms of different lengths."""
    rooms = [torch.tensor([0, 1, 2]), torch.tensor([3]), torch.tensor([4, 5])]
    key_rows = torch.nn.utils.rnn.pad_sequence(rooms, batch_first=True)
    visible = torch.arange(3) < torch.tensor([[3], [1], [2]])
    group = AttentionGroup(query_rows=torch.arange(3)[:, None], key_rows=key_rows, mask=visible[:, None, None])
    query, key, value = (rows.detach()[:6] for rows in operands(2))
    attention = prepare_attention(
        AttentionPlan(groups=(group,), restore=None),
        num_heads=4, num_key_heads=2, like=query, needs_gradient=False, kernel=name,
    )  # fmt: skip
    found = attention(query[:3], key, value)
    for index, room in enumerate(rooms):
        scores = torch.einsum("hd,khd->hk", query[index], key[room].repeat_interleave(2, dim=1)) / 4.0
        mixed = torch.einsum("hk,khd->hd", scores.softmax(-1), value[room].repeat_interleave(2, dim=1))
        torch.testing.assert_close(found[index], mixed.flatten(), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("plan", [plan_attention, partial(plan_rows, dtype=torch.float32)])
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_gives_the_dense_softmax_and_its_gradients(
    name: str, key_heads: int, plan: Callable[..., AttentionPlan]
) -> None:
    """Masks of truth values (training) and of numbers to add (serving)."""
    sequences, dense = tree()

    def reference(query, key, value):  # type: ignore[no-untyped-def]
        key, value = (rows.repeat_interleave(4 // key_heads, dim=1) for rows in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, key) / 4.0
        weights = torch.softmax(scores.masked_fill(~dense, float("-inf")), dim=-1)
        return torch.einsum("hqk,khd->qhd", weights, value).flatten(1)

    attention = prepare_attention(
        plan(sequences, num_queries=sum(LENGTHS)),
        num_heads=4, num_key_heads=key_heads, like=torch.zeros(1), needs_gradient=True, kernel=name,
    )  # fmt: skip
    parts = operands(key_heads)
    expected = reference(*parts)
    if name == "flex":
        # torch has no backward pass of it on the CPU.
        torch.testing.assert_close(attention(*(part.detach() for part in parts)), expected, atol=1e-5, rtol=1e-5)
        return
    found = attention(*parts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, like in zip(gradients(found, parts), gradients(expected, parts), strict=True):
        torch.testing.assert_close(one, like, atol=1e-5, rtol=1e-4)


def test_in_bf16_what_serving_takes_is_as_near_to_float32_as_the_fused_kernel() -> None:
    sequences, _ = tree()
    exact = [part.detach().double() for part in operands(2)]
    rounded = [part.bfloat16() for part in exact]

    def run(parts: list[torch.Tensor], name: str | None) -> torch.Tensor:
        attention = prepare_attention(
            plan_rows(sequences, num_queries=sum(LENGTHS), dtype=parts[0].dtype),
            num_heads=4, num_key_heads=2, like=parts[0], needs_gradient=False, kernel=name,
        )  # fmt: skip
        assert name is not None or isinstance(attention, MaskedMatmul)
        return attention(*parts).double()

    expected = run([part.double() for part in rounded], "fused")
    errors = {name: (run(rounded, name) - expected).abs().mean().item() for name in ("fused", None)}
    assert errors[None] < 2 * errors["fused"], errors
    assert errors[None] < 0.01


def test_the_fastest_kernel_is_found_by_running_them() -> None:
    sequences, _ = tree()
    name, seconds = fastest_kernel(
        plan_attention(sequences, num_queries=sum(LENGTHS)),
        num_heads=4, num_key_heads=2, width=16, dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    assert set(seconds) == set(KERNELS) - {"flex"}, "it has no backward pass on the CPU"
    assert seconds[name] <= 1.2 * min(seconds.values())


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Sequences without padding go through flash-attn, as they do on a GPU; yields where that package is written."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(varlen_attention, "_plain", varlen_attention._fused)
    varlen_attention._flash_attn.cache_clear()
    yield package / "__init__.py"
    varlen_attention._flash_attn.cache_clear()
    sys.modules.pop("flash_attn", None)


BROKEN = {
    "of another CUDA": 'raise ImportError("libcudart.so.11.0: cannot open shared object file")',
    "of another torch": 'raise OSError("undefined symbol: _ZN3c104cuda9SetDeviceEi")',
    "of another version": "flash_attn_func = None",
    "with other arguments": "def flash_attn_varlen_func(q, k, v): ...",
}


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_a_broken_package_costs_its_kernel_and_nothing_else(
    as_on_a_gpu: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    as_on_a_gpu.write_text(source)
    sequences, _ = tree()
    with caplog.at_level(logging.INFO, logger="omnifarm.backbone.attention_kernels"):
        name, seconds = fastest_kernel(
            plan_attention(sequences, num_queries=sum(LENGTHS)),
            num_heads=4, num_key_heads=2, width=16, dtype=torch.float32, device=torch.device("cpu"),
            among=("varlen", "fused"),
        )  # fmt: skip
    assert (name, set(seconds)) == ("fused", {"fused"})
    [record] = caplog.records
    assert (record.message, record.fields["kernel"]) == ("attention_kernel_unusable", "varlen")
    assert record.fields["reason"]


FLASH = """
import torch

def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False
):
    # What flash-attn documents: keys end where queries end, and key heads serve groups of query heads.
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q == int(cu_seqlens_q.diff().max()) and max_seqlen_k == int(cu_seqlens_k.diff().max())
    k, v = (rows.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for rows in (k, v))
    outputs = []
    for a, b, c, d in zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:]):
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) / q.shape[2] ** 0.5
        if causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1 + scores.shape[2] - scores.shape[1])
            scores = scores.masked_fill(hidden, float("-inf"))
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v[c:d]))
    return torch.cat(outputs)
"""


@pytest.mark.parametrize("key_heads", [4, 2])
def test_flash_attn_is_given_what_it_documents(as_on_a_gpu: Path, key_heads: int) -> None:
    """A package that computes what the real one documents stands in for it: that one runs on GPUs alone."""
    as_on_a_gpu.write_text(FLASH)
    sequences, _ = tree()
    # A text behind a picture: each row sees the picture, itself and what came before it.
    own = sequences[2].query_rows
    mask = torch.ones(len(own), len(own), dtype=torch.bool).tril()
    mask[:, :9] = True
    sequences[2] = Visibility(query_rows=own, key_rows=own, mask=mask)
    plan = plan_attention(sequences, num_queries=sum(LENGTHS))
    parts = operands(key_heads)
    found, expected = (
        prepare_attention(
            plan, num_heads=4, num_key_heads=key_heads, like=torch.zeros(1), needs_gradient=True, kernel=name
        )(*parts)
        for name in ("varlen", "fused")
    )
    assert sys.modules["flash_attn"].__file__ == str(as_on_a_gpu)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, like in zip(gradients(found, parts), gradients(expected, parts), strict=True):
        torch.testing.assert_close(one, like, atol=1e-5, rtol=1e-4)


def test_an_unknown_kernel_is_refused() -> None:
    sequences, _ = tree()
    with pytest.raises(ConfigError, match="attention kernel must be one of"):
        prepare_attention(
            plan_attention(sequences, num_queries=sum(LENGTHS)),
            num_heads=4, num_key_heads=4, like=torch.zeros(1), needs_gradient=True, kernel="magic",
        )  # fmt: skip
