"""Four ways to execute one `AttentionPlan` per layer, and which of them a pass should take.

`MaskedMatmul` writes the scores out: two matrix products and a softmax per group, in memory laid out for them.
`FusedGroups` hands every group to torch's fused attention. `FlexBlocks` runs the whole pack as one block-sparse
kernel, `VarlenRuns` as sequences without padding. All give the same numbers within rounding; one contract test holds
them to it.

Shape letters: N query rows, M key rows, H query heads, G key heads, d head width, B sequences of a group, Q and K
padded lengths.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from omnifarm.backbone.attention import AttentionGroup, AttentionPlan, attend
from omnifarm.backbone.varlen_attention import VarlenRuns
from omnifarm.errors import ConfigError
from omnifarm.logs import event

_logger = logging.getLogger(__name__)

MAX_DENSE_ELEMENTS = 1 << 32
"""Largest N * M whose visibility `FlexBlocks` writes out while it builds its blocks."""
_MATMUL_ELEMENTS = 1 << 20
"""Largest query times key length whose scores are worth writing out on the CPU."""
_UNUSABLE = (ConfigError, RuntimeError, ImportError, OSError, AttributeError, TypeError, ValueError)
"""What a kernel raises that this machine cannot run: a mask, type or head width it does not take, no compiler, no memory;
a package built for another torch or CUDA, or one of another version."""


class Attention(Protocol):
    """One plan, ready to be executed in every layer of a pass."""

    def __call__(self, query_NHd: Tensor, key_MGd: Tensor, value_MGd: Tensor) -> Tensor:
        """Return softmax attention with scale 1/sqrt(d), (N, H*d), rows in the order of the queries."""
        ...


class Kernel(Protocol):
    """A way to execute plans; built once per pass."""

    def __call__(self, plan: AttentionPlan, *, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> Attention:
        """Prepare a plan.

        Raises:
            ConfigError: This kernel cannot execute the plan.
        """
        ...


class FusedGroups:
    """torch's fused attention, group by group."""

    def __init__(self, plan: AttentionPlan, *, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> None:
        del num_heads, num_key_heads, dtype
        self._plan = plan

    def __call__(self, query_NHd: Tensor, key_MGd: Tensor, value_MGd: Tensor) -> Tensor:
        """See `Attention`."""
        return attend(query_NHd, key_MGd, value_MGd, plan=self._plan)


class MaskedMatmul:
    """Scores, softmax and mix as matrix products over (B * H) contiguous sequences.

    On the CPU the fused kernel's backward pass takes three times as long as this, and strided operands halve the
    speed of bf16 matrix units; hence one gather that lays every head of every sequence out by itself.
    """

    def __init__(self, plan: AttentionPlan, *, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> None:
        if any(group.query_rows is None or group.key_rows is None for group in plan.groups):
            raise ConfigError("masked matmul attention needs a plan whose groups name their rows")
        self._sizes = [(group.query_rows, group.key_rows) for group in plan.groups]
        rows = plan.groups[0].query_rows if plan.groups else None
        head = torch.arange(num_heads, device=None if rows is None else rows.device)
        key_head = torch.div(head, num_heads // num_key_heads, rounding_mode="floor")
        self._queries = [_per_head(query, head, num_heads) for query, _ in self._sizes if query is not None]
        self._keys = [_per_head(key, key_head, num_key_heads) for _, key in self._sizes if key is not None]
        self._biases = [
            None if group.mask is None else _bias(group.mask, dtype).expand(-1, num_heads, -1, -1).flatten(0, 1)
            for group in plan.groups
        ]
        self._restore = _restored(plan, head)

    def __call__(self, query_NHd: Tensor, key_MGd: Tensor, value_MGd: Tensor) -> Tensor:
        """See `Attention`."""
        num_rows, _, width = query_NHd.shape
        if not self._sizes:
            return query_NHd.flatten(1)
        queries = _gathered(query_NHd, self._queries)
        keys, values = _gathered(key_MGd, self._keys), _gathered(value_MGd, self._keys)
        scale, outputs = width**-0.5, []
        for bias, query, key, value in zip(self._biases, queries, keys, values, strict=True):
            turned = key.transpose(1, 2)
            scores = query @ turned * scale if bias is None else torch.baddbmm(bias, query, turned, alpha=scale)
            outputs.append((_softmax(scores) @ value).flatten(0, 1))
        return torch.cat(outputs).index_select(0, self._restore).view(num_rows, -1)


class FlexBlocks:
    """One block-sparse kernel for the whole pack; compiled on CUDA, a plain reference elsewhere."""

    def __init__(self, plan: AttentionPlan, *, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> None:
        del dtype
        from torch.nn.attention.flex_attention import create_block_mask

        if plan.restore is None:
            raise ConfigError("flex attention needs a plan whose groups name their rows")
        visible = _dense(plan)
        rows, keys = visible.shape
        device = str(visible.device)
        self._blocks = create_block_mask(
            lambda _batch, _head, query, key: visible[query, key], None, None, rows, keys, device=device
        )
        self._is_grouped = num_heads != num_key_heads

    def __call__(self, query_NHd: Tensor, key_MGd: Tensor, value_MGd: Tensor) -> Tensor:
        """See `Attention`."""
        run = _flex(is_compiled=query_NHd.is_cuda)
        query, key, value = (rows.transpose(0, 1)[None] for rows in (query_NHd, key_MGd, value_MGd))
        mixed: Tensor = run(query, key, value, block_mask=self._blocks, enable_gqa=self._is_grouped)
        return mixed[0].transpose(0, 1).flatten(1)


KERNELS: dict[str, Kernel] = {"matmul": MaskedMatmul, "fused": FusedGroups, "flex": FlexBlocks, "varlen": VarlenRuns}
"""Every kernel by its name."""
GPU_KERNELS = ("fused", "varlen", "flex")
"""Those worth trying on a GPU: scores of 28 layers, written out, would fill the memory of any."""


def prepare_attention(
    plan: AttentionPlan, *, num_heads: int, num_key_heads: int, like: Tensor, needs_gradient: bool, kernel: str | None
) -> Attention:
    """Choose a kernel for a pass and prepare its plan.

    Args:
        plan: On the device of the pass.
        num_heads: H.
        num_key_heads: G.
        like: A tensor of the pass's type, on its device.
        needs_gradient: Whether a backward pass will follow.
        kernel: A name in `KERNELS`, such as `fastest_kernel` found on a GPU; None takes matrix products for small packs
            on the CPU, in training and in bf16, where they were measured to be faster, and the fused kernel elsewhere.

    Raises:
        ConfigError: No kernel has that name, or it cannot execute the plan.
    """
    if kernel is None:
        is_small = all(_num_scores(group) <= _MATMUL_ELEMENTS for group in plan.groups)
        is_faster = needs_gradient or like.dtype == torch.bfloat16
        kernel = "matmul" if like.device.type == "cpu" and is_faster and is_small else "fused"
    if kernel not in KERNELS:
        raise ConfigError(f"attention kernel must be one of {sorted(KERNELS)}, found {kernel!r}")
    return KERNELS[kernel](plan, num_heads=num_heads, num_key_heads=num_key_heads, dtype=like.dtype)


def fastest_kernel(
    plan: AttentionPlan,
    *,
    num_heads: int,
    num_key_heads: int,
    width: int,
    dtype: torch.dtype,
    device: torch.device,
    num_layers: int = 1,
    among: Sequence[str] = tuple(KERNELS),
) -> tuple[str, dict[str, float]]:
    """Run every kernel forward and backward on a plan; return one that is as good as the fastest, and all seconds.

    A kernel that this device cannot run is left out, and the log says why. The first of `among` within a fifth of the fastest is taken, so
    that two that are equally fast are not chosen by chance: they round differently.

    Args:
        plan: Of a typical training pack, on `device`.
        num_heads: H.
        num_key_heads: G.
        width: d.
        dtype: Of the model.
        device: Where to run.
        num_layers: Layers that share what a kernel prepares once per pass; each bears its part of that time.
        among: Names of the kernels to try, the preferred ones first.

    Raises:
        ConfigError: None of them runs here.
    """
    assert plan.restore is not None
    rows = plan.restore.shape[0]
    query = torch.randn(rows, num_heads, width, dtype=dtype, device=device, requires_grad=True)
    key, value = (
        torch.randn(rows, num_key_heads, width, dtype=dtype, device=device, requires_grad=True) for _ in range(2)
    )
    seconds: dict[str, float] = {}
    for name in among:
        try:
            started = time.perf_counter()
            attention = KERNELS[name](plan, num_heads=num_heads, num_key_heads=num_key_heads, dtype=dtype)
            prepared_s = time.perf_counter() - started
            seconds[name] = prepared_s / num_layers + _best_time(attention, (query, key, value), device)
        except _UNUSABLE as error:
            seconds.pop(name, None)
            event(_logger, "attention_kernel_unusable", kernel=name, reason=f"{type(error).__name__}: {error}"[:500])
    if not seconds:
        raise ConfigError(f"expected a kernel among {list(among)} that runs on {device}, found none")
    return next(name for name in seconds if seconds[name] <= 1.2 * min(seconds.values())), seconds


def _best_time(attention: Attention, rows: tuple[Tensor, ...], device: torch.device, *, repeats: int = 3) -> float:
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        torch.autograd.grad(attention(*rows).float().sum(), rows)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@cache
def _flex(*, is_compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    plain: Callable[..., Any] = flex_attention
    return torch.compile(plain, dynamic=True) if is_compiled else plain


def _dense(plan: AttentionPlan) -> Tensor:
    """Return (N, M) bool: who sees whom, over all groups of a pack that attends to itself."""
    assert plan.restore is not None
    rows = plan.restore.shape[0]
    if rows**2 > MAX_DENSE_ELEMENTS:
        raise ConfigError(f"flex attention writes {rows}x{rows} visibilities out, more than {MAX_DENSE_ELEMENTS}")
    visible = torch.zeros(rows, rows, dtype=torch.bool, device=plan.restore.device)
    place = 0
    for group in plan.groups:
        assert group.query_rows is not None
        assert group.key_rows is not None
        batch, longest = group.query_rows.shape
        # Padding of queries is nobody's place; padding of keys is masked.
        places = torch.arange(place, place + batch * longest, device=visible.device)
        is_real = torch.isin(places, plan.restore).view(batch, longest)
        mask = torch.ones(batch, longest, group.key_rows.shape[1], dtype=torch.bool, device=visible.device)
        mask &= is_real[:, :, None] if group.mask is None else _visible(group.mask)[:, 0] & is_real[:, :, None]
        which, query, key = torch.nonzero(mask, as_tuple=True)
        visible[group.query_rows[which, query], group.key_rows[which, key]] = True
        place += batch * longest
    return visible


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return numbers to add to the scores: 0 where visible, -inf elsewhere; a mask of numbers is that already."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


def _softmax(scores: Tensor) -> Tensor:
    # Where no gradient is needed: the CPU's bf16 softmax takes longer than float32's and both conversions.
    if scores.dtype != torch.bfloat16 or scores.requires_grad:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)


def _visible(mask: Tensor) -> Tensor:
    """The opposite of `_bias`: bool, true where visible."""
    return mask if mask.dtype == torch.bool else mask == 0


def _per_head(rows_BL: Tensor, head_H: Tensor, num_heads: int) -> Tensor:
    """Return (B * H, L): each head's rows of tensors flattened from (rows, num_heads, d) to (rows * num_heads, d)."""
    return (rows_BL[:, None, :] * num_heads + head_H[None, :, None]).flatten(0, 1)


def _restored(plan: AttentionPlan, head_H: Tensor) -> Tensor:
    """Return (N * H,): for every query row and head its place in the groups' concatenated outputs."""
    if not plan.groups:
        return head_H[:0]
    num_heads, starts, lengths, place = len(head_H), [], [], 0
    for group in plan.groups:
        assert group.query_rows is not None
        batch, longest = group.query_rows.shape
        sequence = torch.arange(batch, device=head_H.device).repeat_interleave(longest)
        starts.append(
            (place + sequence * longest) * num_heads + torch.arange(longest, device=head_H.device).repeat(batch)
        )
        lengths.append(torch.full((batch * longest,), longest, device=head_H.device))
        place += batch * longest
    start, length = torch.cat(starts), torch.cat(lengths)
    if plan.restore is not None:
        start, length = start[plan.restore], length[plan.restore]
    return (start[:, None] + length[:, None] * head_H).flatten()


def _gathered(rows_NHd: Tensor, indexes: Sequence[Tensor]) -> list[Tensor]:
    # One gather for all groups: a gather per group would make as many full-size gradients.
    flat = rows_NHd.flatten(0, 1).index_select(0, torch.cat([index.flatten() for index in indexes]))
    parts = torch.split(flat, [index.numel() for index in indexes])
    return [part.view(*index.shape, -1) for part, index in zip(parts, indexes, strict=True)]


def _num_scores(group: AttentionGroup) -> float:
    if group.query_rows is None or group.key_rows is None:
        return math.inf
    return group.query_rows.shape[1] * group.key_rows.shape[1]
