"""Which rows of a pass the last layer has to finish: those whose result is looked at, and nobody else."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from omnifarm.backbone.attention import AttentionPlan, Visibility, plan_attention
from omnifarm.backbone.packed import Outputs, PackedOutputs


def pack_outputs(ce_rows: Tensor, mse_rows: Tensor, *, num_und: int, sequences: Sequence[Visibility]) -> PackedOutputs:
    """Gather the memory rows with a loss, and what they attend to.

    Args:
        ce_rows: (n_ce,) memory row of every label.
        mse_rows: (n_target,) memory row of every latent token of a training target.
        num_und: Number of understanding rows.
        sequences: Attention of all memory rows.
    """
    rows, place = torch.unique(torch.cat((ce_rows, mse_rows)), return_inverse=True)
    found = outputs_of(
        rows,
        num_und=num_und,
        sequences=sequences,
        plan=lambda wanted: plan_attention(wanted, num_queries=len(rows)),
    )
    return PackedOutputs(
        rows=found.rows,
        und_rows=found.und_rows,
        gen_rows=found.gen_rows,
        plan=found.plan,
        ce=place[: len(ce_rows)],
        mse=place[len(ce_rows) :],
    )


def outputs_of(
    rows: Tensor,
    *,
    num_und: int,
    sequences: Sequence[Visibility],
    plan: Callable[[Sequence[Visibility]], AttentionPlan],
) -> Outputs:
    """Gather some memory rows and what they attend to.

    Args:
        rows: (O,) memory rows, ascending.
        num_und: Number of understanding rows.
        sequences: Attention of all memory rows.
        plan: Makes a plan of what the O rows attend to.
    """
    count = int((rows < num_und).sum())
    wanted: list[Visibility] = []
    if len(rows):
        length = sum(len(sequence.query_rows) for sequence in sequences)
        place_of = torch.full((length,), -1, dtype=torch.long)
        place_of[rows] = torch.arange(len(rows))
        for sequence in sequences:
            places = place_of[sequence.query_rows]
            is_wanted = places >= 0
            if not is_wanted.any():
                continue
            mask = None if sequence.mask is None else sequence.mask[is_wanted]
            wanted.append(Visibility(query_rows=places[is_wanted], key_rows=sequence.key_rows, mask=mask))
    return Outputs(rows=rows, und_rows=rows[:count], gen_rows=rows[count:] - num_und, plan=plan(wanted))
