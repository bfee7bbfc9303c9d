"""From values of concepts to cells of a table: macro means with intervals, counts and failures on every one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

NUM_RESAMPLES = 2000
"""Resamples of the concepts behind an interval."""
MAX_FAILED = 0.1
"""A cell with a larger share of failed items is shown as incomplete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptValue:
    """One measure of one concept under one seed."""

    row: str
    """Key of the system."""
    seed: int
    """Base seed of the run."""
    concept: str
    """Bare name."""
    metric: str
    """Key of the measure."""
    value: float | None
    """None when every item failed."""
    n: int
    """Items behind the value."""
    failures: int = 0
    """Items that gave none: no reply, refused or unreadable verdicts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One cell of a table."""

    value: float | None = None
    """Mean over concepts; None when nothing was measured."""
    low: float | None = None
    """2.5 % quantile of the mean over resampled concepts; None with fewer than two concepts."""
    high: float | None = None
    """97.5 % quantile."""
    n: int = 0
    """Items behind it, over all concepts and seeds."""
    num_concepts: int = 0
    """Concepts behind it."""
    failures: int = 0
    """Items that gave no value."""
    reason: str = ""
    """Why there is no value; "-" when the system does not do the task."""

    @property
    def is_incomplete(self) -> bool:
        """Whether so many items failed that the value speaks of a selection."""
        return self.failures > MAX_FAILED * (self.n + self.failures)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def cell_of(values: Sequence[ConceptValue], *, weighted: bool = False) -> Cell:
    """Return the cell of one measure of one system.

    Seeds are averaged within a concept first, so the interval speaks of concepts: another set of concepts of the same
    kind would give a mean in that range. It says nothing about another judge or backbone.

    Args:
        values: Of all concepts and seeds.
        weighted: Weigh concepts by their number of items, as the public CLIP script does by averaging over images
            (equal when every concept has as many); by default every concept counts the same.
    """
    by_concept: dict[str, list[ConceptValue]] = {}
    for value in values:
        if value.value is not None and not math.isnan(value.value):
            by_concept.setdefault(value.concept, []).append(value)
    failures = sum(value.failures for value in values)
    if not by_concept:
        return Cell(failures=failures, reason="every item failed" if failures else "nothing was asked")
    means = np.array([np.mean([one.value for one in found]) for found in by_concept.values()], np.float64)
    counts = np.array([sum(one.n for one in found) for found in by_concept.values()], np.float64)
    weights = counts if weighted else np.ones_like(counts)
    low, high = _interval(means, weights)
    return Cell(
        value=float(np.average(means, weights=weights)),
        low=low,
        high=high,
        n=int(counts.sum()),
        num_concepts=len(means),
        failures=failures,
    )


def _interval(
    means: np.ndarray[Any, np.dtype[np.float64]], weights: np.ndarray[Any, np.dtype[np.float64]]
) -> tuple[float | None, float | None]:
    if len(means) < 2:
        return None, None
    # The same resamples for every cell: paired columns stay comparable, and a rerun prints the same interval.
    drawn = np.random.default_rng(0).integers(0, len(means), (NUM_RESAMPLES, len(means)))
    resampled = np.average(means[drawn], axis=1, weights=weights[drawn])
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(low), float(high)


def mean_or_none(values: Sequence[float]) -> float | None:
    """Return the mean, None of nothing."""
    return float(np.mean(values)) if len(values) else None


def mean_of_groups(groups: Mapping[str, Sequence[float]]) -> float | None:
    """Return the mean of the means of the groups that hold anything."""
    return mean_or_none([float(np.mean(values)) for values in groups.values() if len(values)])
