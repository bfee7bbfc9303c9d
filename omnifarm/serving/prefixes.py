"""Contexts that several requests begin with, kept: system prompts, replay's worked examples, pictures.

A key is a digest the server makes of whose it is, which backbone, which version of which concepts, and what was
said, in order. Nothing a client sends is ever a key, and no tenant's key can be another's.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set

from torch import Tensor

from omnifarm.backbone.kv_pool import PooledContext
from omnifarm.backbone.segments import Segment, TextSegment, VitSegment


def digest(*parts: str | bytes) -> bytes:
    """Return the SHA-256 of parts, each preceded by its length, so that no two lists of parts collide."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(len(data).to_bytes(8, "big"))
        hashed.update(data)
    return hashed.digest()


def content_digest(segments: Sequence[Segment]) -> bytes:
    """Return the digest of what segments say; soft slots count by place and route, their vectors by the version.

    A table row is no content: rows are dealt anew whenever a concept is loaded.
    """
    parts: list[str | bytes] = []
    for segment in segments:
        if isinstance(segment, TextSegment):
            parts += ["text", repr(segment.ids), repr([(slot.offset, slot.expert) for slot in segment.soft])]
        elif isinstance(segment, VitSegment):
            tensor = segment.patches if segment.features is None else segment.features
            parts += ["vit", repr(segment.grid), _bytes(tensor)]
        else:
            parts += ["latent", repr(segment.grid), repr(segment.timestep), _bytes(segment.latents)]
    return digest(*parts)


class PrefixCache:
    """Contexts by digest, the least recently used let go first. Safe to use from several threads.

    Args:
        max_rows: Rows of the pool it may hold.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._kept: OrderedDict[bytes, tuple[PooledContext, frozenset[str]]] = OrderedDict()
        self._rows = 0
        self._lock = threading.RLock()
        self.num_hits = 0
        """Look-ups that found something."""
        self.num_misses = 0
        """Look-ups that did not."""

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes) -> PooledContext | None:
        """Return the context of a key, or None."""
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.num_misses += 1
                return None
            self.num_hits += 1
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: bytes, context: PooledContext, *, labels: Iterable[str] = ()) -> None:
        """Keep a context under a key; `labels` are what `forget` knows it by."""
        own = len(context.owners[-1]) if context.owners else 0
        if own > self._max_rows:
            return
        with self._lock:
            self._drop(key)
            self._kept[key] = (context, frozenset(labels))
            self._rows += own
            while self._rows > self._max_rows:
                self.let_go()

    def let_go(self) -> bool:
        """Drop the least recently used context; return whether there was one."""
        with self._lock:
            if not self._kept:
                return False
            self._drop(next(iter(self._kept)))
            return True

    def forget(self, label: str) -> None:
        """Drop every context with this label: its concept was deleted or learned anew."""
        with self._lock:
            for key in [key for key, (_, labels) in self._kept.items() if label in labels]:
                self._drop(key)

    def keep_only(self, labels: Set[str]) -> None:
        """Drop every context that has a label which is not among these."""
        with self._lock:
            for key in [key for key, (_, own) in self._kept.items() if not own <= labels]:
                self._drop(key)

    def _drop(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None and found[0].owners:
            self._rows -= len(found[0].owners[-1])


def _bytes(tensor: Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.detach().to("cpu").contiguous().float().numpy().tobytes()
