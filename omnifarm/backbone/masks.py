"""Who may attend to whom inside one sample (BAGEL specification 3.1)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

AttentionMode = Literal["causal", "full", "noise"]


def split_mask(split_lens: Sequence[int], *, modes: Sequence[AttentionMode]) -> Tensor:
    """Return the visibility of one sample, cut into splits.

    A query sees a key that is not later, or that shares its full or noise split; nobody outside a noise split ever
    sees into it.

    Args:
        split_lens: Tokens per split, in order.
        modes: One mode per split.

    Returns:
        (L, L) bool, rows are queries.
    """
    lens = torch.tensor(split_lens, dtype=torch.long)
    split = torch.repeat_interleave(torch.arange(len(split_lens)), lens)
    is_whole = torch.tensor([mode != "causal" for mode in modes], dtype=torch.bool)[split]
    is_noise = torch.tensor([mode == "noise" for mode in modes], dtype=torch.bool)[split]
    same = split[:, None] == split
    not_later = torch.ones(len(split), len(split), dtype=torch.bool).tril()
    return (not_later | (same & is_whole)) & ~(is_noise & ~same)
