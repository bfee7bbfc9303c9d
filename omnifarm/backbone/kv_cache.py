"""Keys and values of earlier passes.

A `Context` never changes: adding a segment gives a new one that shares nothing mutable with the old, so the branches
of guided sampling and the turns of a conversation can fork freely. Stores are what one forward pass writes into.

Shape letters: T cached tokens, M rows that a plan indexes, N new rows, G key heads, d head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """What the model has read so far."""

    keys: tuple[Tensor, ...]
    """Per layer (T, G, d), after head norm and rotary, in sequence order."""
    values: tuple[Tensor, ...]
    """Per layer (T, G, d)."""
    rope: int
    """Rotary position of the next token; smaller than `kv_len` once there are images."""

    @property
    def kv_len(self) -> int:
        """Cached tokens T."""
        return self.keys[0].shape[0] if self.keys else 0

    @property
    def size_bytes(self) -> int:
        """Memory of the cached tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


class GrowingStore:
    """Puts new rows behind the cached rows of several contexts and keeps them, to make new contexts of."""

    def __init__(self, contexts: Sequence[Context]) -> None:
        self.contexts = contexts
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, layer: int, key_NGd: Tensor, value_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Return all cached rows, context after context, then the new ones."""
        self.new[layer] = (key_NGd, value_NGd)
        keys = [*(context.keys[layer] for context in self.contexts), key_NGd]
        values = [*(context.values[layer] for context in self.contexts), value_NGd]
        return torch.cat(keys), torch.cat(values)

    def extended(self, index: int, *, rows: Tensor, rope: int) -> Context:
        """Return context `index` with the new rows `rows`, in that order, behind it."""
        old = self.contexts[index]
        layers = range(len(old.keys))
        return Context(
            keys=tuple(torch.cat((old.keys[layer], self.new[layer][0][rows])) for layer in layers),
            values=tuple(torch.cat((old.values[layer], self.new[layer][1][rows])) for layer in layers),
            rope=rope,
        )


class FixedStore:
    """Room for contexts and a number of new rows, allocated once and written in place, for repeated passes.

    Args:
        contexts: Copied to the front, each followed by its room.
        room: New rows behind every context.
    """

    def __init__(self, contexts: Sequence[Context], *, room: int) -> None:
        self.starts: list[int] = []
        row = 0
        for context in contexts:
            self.starts.append(row)
            row += context.kv_len + room
        self.layers: list[tuple[Tensor, Tensor]] = []
        for layer, (key, value) in enumerate(zip(contexts[0].keys, contexts[0].values, strict=True)):
            keys, values = key.new_zeros(row, *key.shape[1:]), value.new_zeros(row, *value.shape[1:])
            for start, context in zip(self.starts, contexts, strict=True):
                keys[start : start + context.kv_len] = context.keys[layer]
                values[start : start + context.kv_len] = context.values[layer]
            self.layers.append((keys, values))
        self.rows = torch.empty(0, dtype=torch.long)
        self.visible = row

    def update(self, layer: int, key_NGd: Tensor, value_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new rows to `self.rows`; return the first `self.visible` rows."""
        keys, values = self.layers[layer]
        keys[self.rows] = key_NGd
        values[self.rows] = value_NGd
        return keys[: self.visible], values[: self.visible]
