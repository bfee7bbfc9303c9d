"""Which rows of a training pack the last layer has to finish: those with a loss, and nobody else."""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnifarm.backbone.attention import Visibility, plan_attention
from omnifarm.backbone.packed import PackedOutputs


def pack_outputs(ce_rows: Tensor, mse_rows: Tensor, *, num_und: int, sequences: Sequence[Visibility]) -> PackedOutputs:
    """Gather the memory rows with a loss, and what they attend to.

    Args:
        ce_rows: (n_ce,) memory row of every label.
        mse_rows: (n_target,) memory row of every latent token of a training target.
        num_und: Number of understanding rows.
        sequences: Attention of all memory rows.
    """
    rows, place = torch.unique(torch.cat((ce_rows, mse_rows)), return_inverse=True)
    count = int((rows < num_und).sum())
    wanted: list[Visibility] = []
    if len(rows):
        length = sum(len(sequence.query_rows) for sequence in sequences)
        place_of = torch.full((length,), -1, dtype=torch.long)
        place_of[rows] = torch.arange(len(rows))
        for sequence in sequences:
            is_wanted = place_of[sequence.query_rows] >= 0
            mask = None if sequence.mask is None else sequence.mask[is_wanted]
            own = place_of[sequence.query_rows[is_wanted]]
            wanted.append(Visibility(query_rows=own, key_rows=sequence.key_rows, mask=mask))
    return PackedOutputs(
        rows=rows,
        und_rows=rows[:count],
        gen_rows=rows[count:] - num_und,
        ce=place[: len(ce_rows)],
        mse=place[len(ce_rows) :],
        plan=plan_attention(wanted, num_queries=len(rows)),
    )
