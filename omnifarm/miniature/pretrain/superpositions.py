"""Stand-in vectors that share what they say, as learned soft tokens do.

A stand-in of `sequences` says one attribute a vector. Gradient descent from zero writes a little of everything into
every vector, so a backbone that only ever met the former reads the latter less well, and draws other things in the
colours of what was learned. Here the vectors of one introduction are replaced by random mixtures of themselves:
row t of the mixture is sum over j of M[t, j] row j.

Shape letters: S slots of one expert, R rows of the stand-in table, D width.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

_SPREADS = (1, 2, 3, 5, 8)
"""Over how many slots one vector may be spread."""
_GAIN = (1.0, 1.8)
"""What the parts of a spread vector sum to: learned vectors are longer than what they are made of."""


class Superpositions:
    """Collects the mixtures of one step, and appends their rows to the table of stand-ins.

    Args:
        num_rows: R, rows of the table that they are made from.
    """

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows
        self._mixtures: list[tuple[tuple[int, ...], Tensor]] = []
        self._next = num_rows

    def add(self, rng: random.Random, rows: Sequence[int]) -> list[int]:
        """Return S new row numbers whose vectors will be mixtures of `rows` (S,)."""
        count = len(rows)
        weights = torch.zeros(count, count)
        for column in range(count):
            spread = rng.choice([number for number in _SPREADS if number <= count])
            parts = [rng.uniform(0.2, 1.2) for _ in range(spread)]
            gain = 1.0 if spread == 1 else rng.uniform(*_GAIN)
            for row, part in zip(rng.sample(range(count), spread), parts, strict=True):
                weights[row, column] = gain * part / sum(parts)
        self._mixtures.append((tuple(rows), weights))
        first, self._next = self._next, self._next + count
        return list(range(first, self._next))

    def extended(self, table: Tensor) -> Tensor:
        """Return `table` (R, D) with the rows of every mixture since the last call behind it; gradients flow through."""
        made = [weights.to(table) @ table[list(rows)] for rows, weights in self._mixtures]
        self._mixtures, self._next = [], self._num_rows
        return torch.cat((table, *made))
