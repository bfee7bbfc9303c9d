"""Attention over packed sequences that never see each other.

An `AttentionPlan` says, once per pack, which rows attend to which; `attend` executes it, once per layer. Sequences of
similar length are padded into one batch, so that the cost is the sum of squared lengths and not the square of the sum,
and a sequence's padded length depends on its own length alone, never on its neighbours.

Shape letters: N query rows, M key rows, B sequences of a group, Q and K padded lengths, H query heads, G key heads,
d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionGroup:
    """Sequences that attend in one batched call."""

    query_rows: Tensor | None
    """(B, Q) rows of the queries (padding repeats row 0); None when the group is all N rows in order, B = 1."""
    key_rows: Tensor | None
    """(B, K) rows of the keys; None when the group is all M rows in order, B = 1."""
    mask: Tensor | None
    """(B, 1, Q, K) bool, true where a query sees a key; None when everybody sees everybody."""

    def to(self, device: torch.device | str) -> "AttentionGroup":
        """Return the group with its index maps on `device`."""
        return AttentionGroup(
            query_rows=None if self.query_rows is None else self.query_rows.to(device),
            key_rows=None if self.key_rows is None else self.key_rows.to(device),
            mask=None if self.mask is None else self.mask.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """Who attends to whom, for all sequences of a pack."""

    groups: tuple[AttentionGroup, ...]
    """Every query row belongs to exactly one group."""
    restore: Tensor | None
    """(N,) for every query row its place in the groups' concatenated outputs; None when they are already in order."""

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """Return the plan with its index maps on `device`."""
        return AttentionPlan(
            groups=tuple(group.to(device) for group in self.groups),
            restore=None if self.restore is None else self.restore.to(device),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Visibility:
    """One sequence of a plan."""

    query_rows: Tensor
    """(q,) rows of its queries."""
    key_rows: Tensor
    """(k,) rows of its keys."""
    mask: Tensor | None
    """(q, k) bool, True where visible; None when everything is. Every row needs at least one True."""


def plan_attention(sequences: Sequence[Visibility], *, num_queries: int) -> AttentionPlan:
    """Group sequences by padded length and write down the index maps.

    Args:
        sequences: Every query row in [0, num_queries) belongs to exactly one of them; empty ones are skipped.
        num_queries: Number of query rows N.

    Returns:
        The plan (on the CPU).
    """
    sequences = [sequence for sequence in sequences if sequence.query_rows.numel()]
    buckets: dict[tuple[int, int], list[Visibility]] = {}
    for sequence in sequences:
        size = (padded_length(sequence.query_rows.numel()), padded_length(sequence.key_rows.numel()))
        buckets.setdefault(size, []).append(sequence)
    groups: list[AttentionGroup] = []
    restore = torch.zeros(num_queries, dtype=torch.long)
    offset = 0
    for (padded_q, padded_k), members in buckets.items():
        query = torch.zeros(len(members), padded_q, dtype=torch.long)
        key = torch.zeros(len(members), padded_k, dtype=torch.long)
        mask = torch.zeros(len(members), 1, padded_q, padded_k, dtype=torch.bool)
        # Rows of padding see one key, because a row that sees none has no softmax.
        mask[..., 0] = True
        for index, member in enumerate(members):
            q, k = member.query_rows.numel(), member.key_rows.numel()
            query[index, :q] = member.query_rows
            key[index, :k] = member.key_rows
            mask[index, 0, :q, :k] = True if member.mask is None else member.mask
            restore[member.query_rows] = offset + index * padded_q + torch.arange(q)
        offset += len(members) * padded_q
        groups.append(AttentionGroup(query_rows=query, key_rows=key, mask=None if bool(mask.all()) else mask))
    return AttentionPlan(groups=tuple(groups), restore=restore)


def plan_single(mask: Tensor | None) -> AttentionPlan:
    """Plan one sequence that owns all rows, in whatever order they lie, without padding or gathers.

    Args:
        mask: (N, M) bool in row order, or None when every query sees every key.
    """
    group = AttentionGroup(query_rows=None, key_rows=None, mask=None if mask is None else mask[None, None])
    return AttentionPlan(groups=(group,), restore=None)


def padded_length(length: int) -> int:
    """Round up to an eighth of the next lower power of two (at least 8): at most an eighth is padding above 64."""
    step = max(8, 1 << max(length.bit_length() - 4, 0))
    return -(-length // step) * step


def attend(query_NHd: Tensor, key_MGd: Tensor, value_MGd: Tensor, *, plan: AttentionPlan) -> Tensor:
    """Softmax attention with scale 1/sqrt(d), as the plan says.

    Args:
        query_NHd: Queries.
        key_MGd: Keys; G divides H, key head g serves query heads g*(H/G) ... (g+1)*(H/G)-1.
        value_MGd: Values.
        plan: Index maps on the same device.

    Returns:
        (N, H*d), rows in the order of the queries.
    """
    num_heads, repeats = query_NHd.shape[1], query_NHd.shape[1] // key_MGd.shape[1]
    outputs = []
    for group in plan.groups:
        query = query_NHd[None] if group.query_rows is None else query_NHd[group.query_rows]
        key = key_MGd[None] if group.key_rows is None else key_MGd[group.key_rows]
        value = value_MGd[None] if group.key_rows is None else value_MGd[group.key_rows]
        if repeats > 1:
            # Repeating here keeps every fused kernel available: some refuse grouped heads together with a mask.
            key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=group.mask
        )
        outputs.append(out.transpose(1, 2).reshape(-1, num_heads * out.shape[-1]))
    if not outputs:
        return query_NHd.flatten(1)
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return flat if plan.restore is None else flat[plan.restore]
