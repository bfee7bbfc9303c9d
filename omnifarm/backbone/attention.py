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
    """(B, 1, Q, K) bool, true where a query sees a key, or numbers to add to the scores; None when everybody sees
    everybody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPlan:
    """Who attends to whom, for all sequences of a pack."""

    groups: tuple[AttentionGroup, ...]
    """Every query row belongs to exactly one group. Either all groups have rows, or there is one group without."""
    restore: Tensor | None
    """(N,) for every query row its place in the groups' concatenated outputs; None when they are already in order."""

    def to(self, device: torch.device | str) -> "AttentionPlan":
        """Return the plan with its index maps on `device`."""
        groups = (
            AttentionGroup(
                query_rows=_moved(group.query_rows, device),
                key_rows=_moved(group.key_rows, device),
                mask=_moved(group.mask, device),
            )
            for group in self.groups
        )
        return AttentionPlan(groups=tuple(groups), restore=_moved(self.restore, device))


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
    buckets: dict[tuple[int, int, bool], list[Visibility]] = {}
    for sequence in sequences:
        q, k = sequence.query_rows.numel(), sequence.key_rows.numel()
        size = (padded_length(q), padded_length(k))
        sees_all = size == (q, k) and (sequence.mask is None or bool(sequence.mask.all()))
        buckets.setdefault((*size, sees_all), []).append(sequence)
    groups: list[AttentionGroup] = []
    restore = torch.zeros(num_queries, dtype=torch.long)
    offset = 0
    # Sorted, because a row that several sequences see adds their gradients up in this order.
    for (padded_q, padded_k, sees_all), members in sorted(buckets.items(), key=lambda bucket: bucket[0]):
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
        groups.append(AttentionGroup(query_rows=query, key_rows=key, mask=None if sees_all else mask))
    return AttentionPlan(groups=tuple(groups), restore=restore)


def plan_single(mask: Tensor | None) -> AttentionPlan:
    """Plan one sequence that owns all rows, in whatever order they lie, without padding or gathers.

    Args:
        mask: (N, M) bool in row order, or None when every query sees every key.
    """
    sized = None if mask is None else mask[None, None]
    group = AttentionGroup(query_rows=None, key_rows=None, mask=sized)
    return AttentionPlan(groups=(group,), restore=None)


def padded_length(length: int) -> int:
    """Round short lengths up, to share a batch: to an eighth of the next lower power of two, at least 8.

    From 256 on a sequence fills the machine by itself, and padding would only cost work and a mask.
    """
    if length >= 256:
        return length
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
    if not plan.groups:
        return query_NHd.flatten(1)
    num_heads, repeats = query_NHd.shape[1], query_NHd.shape[1] // key_MGd.shape[1]
    queries = _gathered(query_NHd, [group.query_rows for group in plan.groups])
    keys, values = (_gathered(rows, [group.key_rows for group in plan.groups]) for rows in (key_MGd, value_MGd))
    outputs = []
    for group, query, key, value in zip(plan.groups, queries, keys, values, strict=True):
        if repeats > 1:
            # Repeating here keeps every fused kernel available: some refuse grouped heads together with a mask.
            key, value = key.repeat_interleave(repeats, dim=2), value.repeat_interleave(repeats, dim=2)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), attn_mask=group.mask
        )
        outputs.append(out.transpose(1, 2).reshape(-1, num_heads * out.shape[-1]))
    flat = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return flat if plan.restore is None else flat.index_select(0, plan.restore)


def _gathered(rows: Tensor, groups: list[Tensor | None]) -> list[Tensor]:
    """Return the (B, length, ...) rows of every group, or all rows as the only sequence."""
    indexes = [index for index in groups if index is not None]
    if not indexes:
        return [rows[None]]
    # One gather for all groups: a gather per group would make as many full-size gradients.
    flat = indexes[0].flatten() if len(indexes) == 1 else torch.cat([index.flatten() for index in indexes])
    parts = torch.split(rows.index_select(0, flat), [index.numel() for index in indexes])
    return [part.reshape(*index.shape, *rows.shape[1:]) for part, index in zip(parts, indexes, strict=True)]


def _moved(tensor: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
