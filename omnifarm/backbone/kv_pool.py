"""One table of keys and values per layer, shared by everything that is being read, written or drawn.

A context is a list of rows of that table; contexts that begin alike share the rows of their beginning. Rows go back
to the pool when the last context that holds them is gone, so a cancelled request leaves nothing behind.

Shape letters: R rows of the pool, T tokens of a context, N new rows, G key heads, d head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from omnifarm.backbone.model import Backbone
from omnifarm.errors import ConfigError

SCRATCH_ROW = 0
"""A row nobody owns: padding reads it behind a mask."""
_FIRST_ROWS = 2048
"""Rows allocated at first; the table doubles when they run out, up to its capacity."""


class Table(Protocol):
    """Whatever has rows to lend."""

    def give_back(self, ids: list[int]) -> None:
        """Take rows back, from any thread."""


class Rows:
    """Rows of a table, owned by whoever holds this object; they go back when nobody does."""

    __slots__ = ("_ids", "_pool", "index")

    def __init__(self, pool: Table, ids: list[int]) -> None:
        self._pool, self._ids = pool, ids
        self.index = torch.tensor(ids, dtype=torch.long)
        """(n,) row numbers, on the CPU."""

    def __len__(self) -> int:
        return len(self._ids)

    def __del__(self) -> None:
        self._pool.give_back(self._ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PooledContext:
    """What the model has read so far; never changes."""

    rows: Tensor
    """(T,) rows of the pool in sequence order, on the CPU."""
    rope: int
    """Rotary position of the next token."""
    owners: tuple[Rows, ...]
    """Keep the rows from going back."""

    @property
    def kv_len(self) -> int:
        """Cached tokens T."""
        return len(self.rows)


NOTHING = PooledContext(rows=torch.empty(0, dtype=torch.long), rope=0, owners=())
"""The context in which nothing has been said."""


class KvPool:
    """The table. Not safe for several threads, but for giving rows back.

    Args:
        model: For the number of layers and key heads, the type and the device.
        capacity: Most rows, at least 1.
    """

    def __init__(self, model: Backbone, *, capacity: int) -> None:
        if capacity < 1:
            raise ConfigError(f"expected room for at least one cached token, found capacity {capacity}")
        llm = model.config.llm
        self.capacity = capacity
        self._width = (int(llm.num_key_value_heads or llm.num_attention_heads), model.config.head_dim)
        self._model = model
        size = min(capacity, _FIRST_ROWS) + 1
        layers = range(llm.num_hidden_layers)
        self.keys = [self._blank(size) for _ in layers]
        """Per layer (R, G, d), after head norm and rotary."""
        self.values = [self._blank(size) for _ in layers]
        """Per layer (R, G, d)."""
        self._free = list(range(size - 1, SCRATCH_ROW, -1))
        self.relieve: Callable[[], bool] = lambda: False
        """Asked to let go of something when rows run out; says whether it did."""

    @property
    def num_used(self) -> int:
        """Rows somebody holds."""
        return len(self.keys[0]) - 1 - len(self._free)

    @property
    def num_free(self) -> int:
        """Rows that can still be taken."""
        return self.capacity - self.num_used

    @property
    def row_bytes(self) -> int:
        """Memory of one row over all layers."""
        return 2 * len(self.keys) * self._width[0] * self._width[1] * self.keys[0].element_size()

    def take(self, count: int) -> Rows:
        """Hand out `count` rows.

        Raises:
            ConfigError: There are not that many; whoever admits work must have counted.
        """
        while count > self.num_free and self.relieve():
            pass
        if count > self.num_free:
            raise ConfigError(f"expected {count} free rows in the pool, found {self.num_free} of {self.capacity}")
        while len(self._free) < count:
            self._grow()
        # One by one: another thread may be giving rows back at this moment.
        return Rows(self, [self._free.pop() for _ in range(count)])

    def give_back(self, ids: list[int]) -> None:
        """Take rows back; called by `Rows` alone."""
        self._free.extend(ids)

    def _grow(self) -> None:
        old = len(self.keys[0])
        new = min(2 * old, self.capacity + 1)
        for tables in (self.keys, self.values):
            for layer, table in enumerate(tables):
                tables[layer] = torch.cat((table, self._blank(new - old)))
        self._free[:0] = range(new - 1, old - 1, -1)

    def _blank(self, rows: int) -> Tensor:
        # Zeros, not empty memory: padding multiplies what it finds here by a weight of exactly zero.
        return torch.zeros((rows, *self._width), dtype=self._model.dtype, device=self._model.device)


class PoolStore:
    """The key store of one step: new rows are written to their places, every sequence finds its keys by row."""

    def __init__(self, pool: KvPool, rows: Tensor) -> None:
        self._pool, self._rows = pool, rows

    def update(self, layer: int, key_NGd: Tensor, value_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new rows; return the whole table of the layer."""
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        for table, new in ((keys, key_NGd), (values, value_NGd)):
            _words(table).index_copy_(0, self._rows, _words(new))
        return keys, values


def _words(rows_RGd: Tensor) -> Tensor:
    """Return rows as numbers of eight bytes where they are whole ones: copying goes number by number."""
    flat = rows_RGd.flatten(1)
    return flat.view(torch.int64) if flat.shape[1] * flat.element_size() % 8 == 0 else flat
