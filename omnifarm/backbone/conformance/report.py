"""What a replay found, group by group."""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupReport:
    """The outcome of one group."""

    num_tensors: int
    """Out-tensors compared."""
    num_facts: int
    """Recorded parameters (texts, lengths, ids) compared."""
    worst_ratio: float
    """Largest |found - expected| / (atol + rtol * |expected|); at most 1 passes, infinite for exact mismatches."""
    failing: tuple[str, ...]
    """Names of tensors and facts that are wrong, missing or not covered."""
    failures: tuple[str, ...]
    """One line per entry of `failing`: its name and what is wrong."""
    seconds: float = 0.0
    """Time of the replay."""
    ratios: dict[str, float] = field(default_factory=dict)
    """Ratio of every compared tensor and fact."""

    @property
    def passed(self) -> bool:
        """Whether everything was compared and nothing failed."""
        return not self.failing


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenReport:
    """The outcome of a golden folder."""

    groups: dict[str, GroupReport]
    """By group name; problems of the folder itself are the group `folder`."""

    @property
    def passed(self) -> bool:
        """Whether every group passed."""
        return bool(self.groups) and all(group.passed for group in self.groups.values())

    @property
    def failing(self) -> list[str]:
        """`group/name` of everything that failed."""
        return [f"{name}/{entry}" for name, group in self.groups.items() for entry in group.failing]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values; an infinite ratio becomes null."""
        return {
            "pass": self.passed,
            "failing": self.failing,
            "groups": {
                name: {
                    "pass": group.passed,
                    "tensors": group.num_tensors,
                    "facts": group.num_facts,
                    "worst_ratio": group.worst_ratio if math.isfinite(group.worst_ratio) else None,
                    "failing": list(group.failing),
                    "failures": list(group.failures),
                    "seconds": round(group.seconds, 3),
                }
                for name, group in self.groups.items()
            },
        }
