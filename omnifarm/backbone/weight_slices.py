"""Parts of a safetensors file, read by themselves: what a process that keeps a share of a model needs.

A tensor lies in the file row by row, so any run of its numbers is one run of bytes: it is found by the header and read
with one call. Nothing is mapped into memory, so what a process reads is what it asked for.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from omnifarm.backbone.checkpoint import read_header
from omnifarm.errors import WeightsError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class WeightSlices:
    """An open weights file; use it in a `with` block.

    Args:
        path: A safetensors file.

    Raises:
        WeightsError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._entries, self._data_start = read_header(path)
        self._path = path
        self._file = path.open("rb", buffering=0)
        self.bytes_read = 0
        """Bytes of weights read so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._entries[name]["shape"])

    def flat(self, name: str, *, start: int = 0, end: int | None = None) -> Tensor:
        """Return the numbers `start` to `end` (not included; None for all) of a tensor laid out flat, in the file's type.

        Raises:
            WeightsError: The file has another type of number there, or ends early.
        """
        entry = self._entries[name]
        if entry["dtype"] not in _DTYPES:
            raise WeightsError(f"{self._path}: {name} must be one of {', '.join(_DTYPES)}, found {entry['dtype']}")
        end = torch.Size(entry["shape"]).numel() if end is None else end
        values = torch.empty(max(0, end - start), dtype=_DTYPES[entry["dtype"]])
        room = values.view(torch.uint8).numpy().data
        self._file.seek(self._data_start + entry["data_offsets"][0] + start * values.itemsize)
        while len(room):
            # One call returns at most 2 GiB on Linux.
            count = self._file.readinto(room)
            if not count:
                raise WeightsError(f"{self._path} ended early, inside {name}")
            self.bytes_read += count
            room = room[count:]
        return values

    def rows(self, name: str, ids: list[int]) -> Tensor:
        """Return some rows of a tensor, (len(ids), ...), each read by itself."""
        shape = self.shape(name)
        width = torch.Size(shape[1:]).numel()
        flat = [self.flat(name, start=row * width, end=(row + 1) * width) for row in ids]
        return (torch.cat(flat) if flat else torch.empty(0)).reshape(len(ids), *shape[1:])
