"""Two runs side by side: what got better, what got worse, and whether that is more than the choice of concepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from omnifarm.bench.metrics.aggregate import NUM_RESAMPLES
from omnifarm.errors import ConfigError

Change = Literal["better", "worse", "same"]
"""Worse is a regression: by more than the tolerance, and not by the choice of concepts alone."""

_SAME = ("protocol", "judge", "num_concepts", "num_items")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One cell in both runs."""

    row: str
    """Key of the row."""
    column: str
    """Key of the column."""
    before: float
    """Value in the first run."""
    after: float | None
    """Value in the second run; None where it measured none, which is worse whatever the tolerance."""
    low: float | None
    """2.5 % quantile of the paired difference over concepts; None with fewer than two shared concepts."""
    high: float | None
    """97.5 % quantile."""
    change: Change
    """What it amounts to."""


def compare(before: Mapping[str, Any], after: Mapping[str, Any], *, tolerance: float) -> list[Difference]:
    """Return every cell that the first report measured and whose column the second one could run.

    A cell is worse (or better) when its value moved by more than `tolerance` and, where two or more concepts are
    shared, the interval of the paired differences leaves out 0.

    Args:
        before: Contents of one report.json.
        after: Contents of the other.
        tolerance: Moves up to this are no news; in the units of the columns.

    Raises:
        ConfigError: The runs answer different questions: another protocol, judge, data or size.
    """
    for key in _SAME:
        if before[key] != after[key]:
            raise ConfigError(
                f"runs are compared only under the same {key}, found {before[key]!r} and {after[key]!r}; "
                "score both alike (omnifarm bench score)"
            )
    if before["about"]["benchmark"] != after["about"]["benchmark"]:
        raise ConfigError(
            "runs are compared only on the same questions, found two benchmarks; use the same data and sizes"
        )
    found = []
    for column in before["columns"]:
        better = column["is_higher_better"]
        if column["key"] in after["reasons"]:
            continue
        for row in before["rows"]:
            cells = [report["cells"].get(row["key"], {}).get(column["key"]) for report in (before, after)]
            if better is None or row["key"] not in after["cells"] or cells[0] is None or cells[0]["value"] is None:
                continue
            if cells[1] is None or cells[1]["value"] is None:
                found.append(_gone(row["key"], column["key"], before=cells[0]["value"]))
                continue
            pairs = _paired(before, after, row["key"], column["key"])
            low, high = _interval(pairs) if len(pairs) > 1 else (None, None)
            moved = cells[1]["value"] - cells[0]["value"]
            found.append(
                Difference(
                    row=row["key"],
                    column=column["key"],
                    before=cells[0]["value"],
                    after=cells[1]["value"],
                    low=low,
                    high=high,
                    change=_change(moved, low, high, tolerance=tolerance, is_higher_better=better),
                )
            )
    return found


def _gone(row: str, column: str, *, before: float) -> Difference:
    return Difference(row=row, column=column, before=before, after=None, low=None, high=None, change="worse")


def _change(moved: float, low: float | None, high: float | None, *, tolerance: float, is_higher_better: bool) -> Change:
    may_be_nothing = low is not None and high is not None and low <= 0 <= high
    if abs(moved) <= tolerance or may_be_nothing:
        return "same"
    return "better" if (moved > 0) == is_higher_better else "worse"


def _paired(before: Mapping[str, Any], after: Mapping[str, Any], row: str, column: str) -> np.ndarray[Any, Any]:
    one, other = (report["concepts"].get(row, {}) for report in (before, after))
    return np.array([other[c][column] - one[c][column] for c in one if column in one[c] and column in other.get(c, {})])


def _interval(differences: np.ndarray[Any, Any]) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(0, len(differences), (NUM_RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)
