"""Attention of packed sequences without padding: flash-attn's kernel for sequences of any length, or torch's own.

Those kernels know two kinds of sequences: every query sees every key, or each query sees one key more than the one
before it. Every mask of a pack is cut into runs of such queries: a text is one run, a picture another, what they
share is gathered once per run.

Shape letters: N query rows, M key rows, H query heads, G key heads, d head width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from omnifarm.backbone.attention import AttentionPlan
from omnifarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """Queries one kernel call can serve together."""

    queries: Tensor
    """Rows of the queries, in order."""
    keys: Tensor
    """Rows of the keys the last query sees; if causal, the one before it sees all but the last, and so on."""
    is_causal: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Bounds:
    """Where runs begin and end among rows laid side by side."""

    lengths: tuple[int, ...]
    offsets: Tensor
    """(runs + 1,) int32 on the device."""


class VarlenRuns:
    """All runs of a plan in two calls: those that see everything, and the causal ones."""

    def __init__(self, plan: AttentionPlan, *, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> None:
        del num_heads, num_key_heads, dtype
        if plan.restore is None:
            raise ConfigError("attention over runs needs a plan whose groups name their rows")
        device = plan.restore.device
        runs = list(_runs(plan))
        self._calls = []
        ordered = []
        for is_causal in (False, True):
            chosen = [run for run in runs if run.is_causal is is_causal]
            if chosen:
                queries, keys = (torch.cat(rows) for rows in zip(*((r.queries, r.keys) for r in chosen), strict=True))
                bounds = (
                    _bounds([run.queries for run in chosen], device),
                    _bounds([run.keys for run in chosen], device),
                )
                self._calls.append((queries.to(device), keys.to(device), bounds, is_causal))
                ordered.append(queries)
        self._restore = torch.argsort(torch.cat(ordered)).to(device) if ordered else plan.restore

    def __call__(self, query_NHd: Tensor, key_MGd: Tensor, value_MGd: Tensor) -> Tensor:
        """Return softmax attention with scale 1/sqrt(d), (N, H*d), rows in the order of the queries."""
        product = _fused if query_NHd.is_cuda else _plain
        outputs = [
            product(
                query_NHd.index_select(0, queries),
                key_MGd.index_select(0, keys),
                value_MGd.index_select(0, keys),
                *bounds,
                is_causal,
            )
            for queries, keys, bounds, is_causal in self._calls
        ]
        return torch.cat(outputs).index_select(0, self._restore).flatten(1) if outputs else query_NHd.flatten(1)


def _runs(plan: AttentionPlan) -> Iterator[_Run]:
    """Cut every sequence of a plan into runs; all on the CPU."""
    assert plan.restore is not None
    is_place = torch.zeros(sum(group.query_rows.numel() for group in plan.groups if group.query_rows is not None) + 1)
    is_place[plan.restore.cpu()] = 1
    place = 0
    for group in plan.groups:
        assert group.query_rows is not None
        assert group.key_rows is not None
        query_rows, key_rows = group.query_rows.cpu(), group.key_rows.cpu()
        masks = None if group.mask is None else group.mask.cpu()[:, 0]
        for index, (queries, keys) in enumerate(zip(query_rows, key_rows, strict=True)):
            # Padding of queries is nobody's place; padding of keys is masked.
            is_real = is_place[place : place + len(queries)] > 0
            place += len(queries)
            if masks is None:
                visible = torch.ones(len(queries), len(keys), dtype=torch.bool)
            else:
                visible = masks[index] if masks.dtype == torch.bool else masks[index] == 0
            yield from _cut(queries[is_real], keys, visible[is_real])


def _cut(queries: Tensor, keys: Tensor, visible: Tensor) -> Iterator[_Run]:
    """Cut one sequence, (q,) queries, (k,) keys and (q, k) visibility, into the fewest runs that lie in a row."""
    changes = visible[1:] != visible[:-1]
    lost, gained = (changes & visible[:-1]).any(dim=1), (changes & visible[1:]).sum(dim=1)
    # How a query differs from the one before: 0 not at all, 1 by one key more, 2 otherwise.
    kinds = torch.where(lost | (gained > 1), 2, gained).tolist()
    start = 0
    while start < len(queries):
        end = start + 1
        kind = kinds[start] if start < len(kinds) else 2
        while kind < 2 and end < len(queries) and kinds[end - 1] == kind:
            end += 1
        seen = [keys[visible[start]]]
        if kind == 1:
            seen += [keys[changes[row]] for row in range(start, end - 1)]
        yield _Run(queries=queries[start:end], keys=torch.cat(seen), is_causal=kind == 1)
        start = end


def _bounds(rows: Sequence[Tensor], device: torch.device) -> _Bounds:
    lengths = tuple(len(one) for one in rows)
    offsets = torch.tensor((0, *lengths)).cumsum(0).to(dtype=torch.int32, device=device)
    return _Bounds(lengths=lengths, offsets=offsets)


@cache
def _flash_attn() -> Callable[..., Any] | None:
    """Return flash-attn's kernel where the package is there (`pip install omnifarm[gpu]`)."""
    if find_spec("flash_attn") is None:
        return None
    return cast(Callable[..., Any], import_module("flash_attn").flash_attn_varlen_func)


def _fused(query: Tensor, key: Tensor, value: Tensor, of_queries: _Bounds, of_keys: _Bounds, is_causal: bool) -> Tensor:
    sides = (of_queries.offsets, of_keys.offsets, max(of_queries.lengths), max(of_keys.lengths))
    flash = _flash_attn()
    if flash is not None:
        return cast(Tensor, flash(query, key, value, *sides, causal=is_causal))
    from torch.nn.attention.varlen import varlen_attn

    window, is_grouped = (-1, 0 if is_causal else -1), query.shape[1] != key.shape[1]
    return cast(Tensor, varlen_attn(query, key, value, *sides, window_size=window, enable_gqa=is_grouped))


def _plain(query: Tensor, key: Tensor, value: Tensor, of_queries: _Bounds, of_keys: _Bounds, is_causal: bool) -> Tensor:
    """What the kernels compute, run by run; for machines without them."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    sides = ((query, of_queries), (key, of_keys), (value, of_keys))
    outputs = []
    for run in zip(*(torch.split(rows, list(bounds.lengths)) for rows, bounds in sides), strict=True):
        q, k, v = (rows.transpose(0, 1)[None] for rows in run)
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        if is_causal:
            mask = mask.tril(diagonal=k.shape[2] - q.shape[2])
        outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1))
    return torch.cat(outputs)
