"""Does a server under load grow? Memory of every replica over time, and by how much its later part exceeds its earlier."""

import statistics
from collections.abc import Mapping, Sequence

LEAST_SAMPLES = 12
"""A replica seen less often than this is not judged."""
ALLOWED_GROWTH = 0.05
"""Share by which the last quarter of a replica's life may exceed its second quarter: allocators keep what they had once."""

Figures = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""A server's metrics: by name, (labels, value) of every sample."""


class MemoryLog:
    """Resident memory of replicas; mutable."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def note(self, figures: Figures) -> None:
        """Remember what the replicas hold now."""
        for labels, num_bytes in figures.get("process_resident_memory_bytes", ()):
            self._seen.setdefault(labels.get("replica", ""), []).append(num_bytes / 2**20)

    def growth(self) -> dict[str, float]:
        """Return, for every replica that was seen often enough, the growth from its second to its last quarter.

        The first quarter is left out: a replica's tables and its allocator grow until the load has come in every form.
        """
        grown = {}
        for replica, values in self._seen.items():
            if len(values) >= LEAST_SAMPLES:
                quarter = len(values) // 4
                early, late = values[quarter : 2 * quarter], values[-quarter:]
                grown[replica] = round(statistics.median(late) / statistics.median(early) - 1, 4)
        return grown

    def has_leak(self) -> bool:
        """Whether a replica grew more than is allowed."""
        return any(growth > ALLOWED_GROWTH for growth in self.growth().values())

    def report(self) -> dict[str, dict[str, float]]:
        """Return first, largest and last MiB and the number of samples of every replica."""
        return {
            replica: {
                "first_mib": round(values[0], 1),
                "largest_mib": round(max(values), 1),
                "last_mib": round(values[-1], 1),
                "samples": len(values),
            }
            for replica, values in self._seen.items()
        }
