"""One forward pass over sequences of many requests: texts and pictures being read, answers being written,
pictures being denoised.

A `Part` is what one sequence, or many of a kind, brings to the pass. Parts are laid side by side, every sequence
attends to its own rows of the pool, and what a sequence gets does not depend on its neighbours: padded lengths follow
from its own length alone, and products do not mix rows (`layers.RowwiseLinear`).

Shape letters: U understanding rows, E generation rows, N = U + E, D width, B sequences of a group, Q and K padded
lengths.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from omnifarm.backbone.attention import AttentionGroup, AttentionPlan, Visibility, padded_length
from omnifarm.backbone.kv_pool import KvPool, PoolStore
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.outputs import outputs_of
from omnifarm.backbone.packed import Outputs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """What one sequence, or many of a kind, brings to a pass. Everything but the vectors lies on the CPU."""

    und: Tensor
    """(U, D) vectors entering the understanding expert."""
    gen: Tensor
    """(E, D) vectors entering the generation expert."""
    positions: Tensor
    """(N,) rotary positions, understanding rows first."""
    rows: Tensor
    """(N,) pool rows that receive the new keys and values."""
    sequences: tuple[Visibility, ...]
    """Who sees what: query rows count within the part, key rows within the pool."""
    wants: tuple[bool, bool]
    """Whether the results of the understanding rows, and those of the generation rows, are looked at. Of the others
    the last layer gives keys and values alone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layout:
    """Parts side by side; what of a pass does not change while the same parts meet again."""

    num_und: int
    """Understanding rows."""
    positions: Tensor
    """(N,) in memory order."""
    rows: Tensor
    """(N,) in memory order."""
    plan: AttentionPlan
    """Attention over the pool."""
    outputs: Outputs | None
    """The rows whose results are wanted; None for all."""


def lay_out(parts: Sequence[Part], *, device: torch.device | str, dtype: torch.dtype) -> Layout:
    """Lay parts side by side: all understanding rows, then all generation rows.

    Args:
        parts: At least one.
        device: Where the pass runs.
        dtype: Type of the masks, that of the queries.
    """
    counts = [(len(part.und), len(part.gen)) for part in parts]
    num_und, num_gen = (sum(count[expert] for count in counts) for expert in (0, 1))
    total = num_und + num_gen
    positions, rows = (torch.zeros(total, dtype=torch.long) for _ in range(2))
    is_wanted = torch.zeros(total, dtype=torch.bool)
    sequences: list[Visibility] = []
    next_und, next_gen = 0, num_und
    for part, (u, e) in zip(parts, counts, strict=True):
        places = torch.cat((torch.arange(next_und, next_und + u), torch.arange(next_gen, next_gen + e)))
        positions[places], rows[places] = part.positions, part.rows
        is_wanted[places[:u]], is_wanted[places[u:]] = part.wants
        sequences += [
            Visibility(query_rows=places[one.query_rows], key_rows=one.key_rows, mask=one.mask)
            for one in part.sequences
        ]
        next_und, next_gen = next_und + u, next_gen + e
    wanted, outputs = torch.nonzero(is_wanted).flatten(), None
    if len(wanted) < total:
        outputs = outputs_of(
            wanted,
            num_und=num_und,
            sequences=sequences,
            plan=lambda some: plan_rows(some, num_queries=len(wanted), dtype=dtype),
        ).to(device)
    return Layout(
        num_und=num_und,
        positions=positions.to(device),
        rows=rows.to(device),
        plan=plan_rows(sequences, num_queries=total, dtype=dtype).to(device),
        outputs=outputs,
    )


def run_parts(
    model: Backbone, pool: KvPool, parts: Sequence[Part], *, layout: Layout | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Run the language model on parts.

    Args:
        model: The backbone.
        pool: Receives the new keys and values at every part's `rows`.
        parts: At least one.
        layout: Of these very parts, if they were laid out before.

    Returns:
        Per part the hidden states after the final norms, (U, D) and (E, D); no rows where none are wanted.
    """
    if layout is None:
        layout = lay_out(parts, device=model.device, dtype=model.dtype)
    hidden = torch.cat([*(part.und for part in parts), *(part.gen for part in parts)])
    hidden = model.language_model.model(
        hidden,
        num_und=layout.num_und,
        positions=layout.positions,
        plan=layout.plan,
        store=PoolStore(pool, layout.rows),
        outputs=layout.outputs,
    )
    counts = [(len(part.und) * part.wants[0], len(part.gen) * part.wants[1]) for part in parts]
    und, gen = hidden.tensor_split([sum(u for u, _ in counts)])
    return list(zip(und.split([u for u, _ in counts]), gen.split([e for _, e in counts]), strict=True))


def plan_rows(sequences: Sequence[Visibility], *, num_queries: int, dtype: torch.dtype) -> AttentionPlan:
    """Group sequences by padded length, so that a group is one batched call.

    Unlike `plan_attention`, whether a sequence is masked depends on itself alone, and masks are numbers to add: the
    fused kernel would turn true and false into numbers at every layer.

    Args:
        sequences: Every query row in [0, num_queries) belongs to exactly one of them; key rows are rows of a pool.
        num_queries: Number of query rows.
        dtype: Type of the masks.
    """
    buckets: dict[tuple[int, int, int], list[Visibility]] = {}
    for one in sequences:
        q, k = len(one.query_rows), len(one.key_rows)
        padded_q, padded_k = padded_length(q), padded_length(k)
        kind = 2 if one.mask is not None else 0 if (q, k) == (padded_q, padded_k) else 1
        buckets.setdefault((padded_q, padded_k, kind), []).append(one)
    groups: list[AttentionGroup] = []
    restore = torch.zeros(num_queries, dtype=torch.long)
    offset = 0
    for (padded_q, padded_k, kind), members in buckets.items():
        query, query_lens = _padded([one.query_rows for one in members], padded_q)
        key, key_lens = _padded([one.key_rows for one in members], padded_k)
        is_real = torch.arange(padded_q) < query_lens[:, None]
        restore[query[is_real]] = (offset + torch.arange(query.numel()).view_as(query))[is_real]
        offset += query.numel()
        groups.append(
            AttentionGroup(query_rows=query, key_rows=key, mask=_mask(members, key_lens, kind, query, key, dtype))
        )
    return AttentionPlan(groups=tuple(groups), restore=restore)


def _mask(
    members: list[Visibility], key_lens: Tensor, kind: int, query: Tensor, key: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """Return (B, 1, Q or 1, K) to add to the scores: 0 where visible, -inf elsewhere."""
    if kind == 0:
        return None
    if kind == 1:
        visible = (torch.arange(key.shape[1]) < key_lens[:, None])[:, None, None]
    else:
        visible = torch.zeros(len(members), 1, query.shape[1], key.shape[1], dtype=torch.bool)
        # Rows of padding see one key, because a row that sees none has no softmax.
        visible[..., 0] = True
        for index, member in enumerate(members):
            if member.mask is not None:
                visible[index, 0, : member.mask.shape[0], : member.mask.shape[1]] = member.mask
    return (
        torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, float("-inf")).expand(-1, -1, query.shape[1], -1)
    )


def _padded(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Return (B, length) with zeros behind each, and the (B,) lengths."""
    lens = torch.tensor([len(one) for one in rows])
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return F.pad(padded, (0, length - padded.shape[1])), lens
