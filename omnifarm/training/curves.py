"""What a lane measured, for people and their tools: a short JSON curve and the whole table as parquet."""

import io
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from omnifarm.training.lane import Lane, StepLosses

_COLUMNS = tuple(column.name for column in fields(StepLosses))


def curve_parquet(lane: Lane) -> bytes:
    """Return every step a lane took as a parquet file.

    Columns: `step`, those of `StepLosses` (null where a step had no sample of a task), `learning_rate`, and
    `held_out`, the held-out loss before that step (null where none was measured). A last row without losses holds what
    was measured after the last step.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    held_out = {one.step: one.loss for one in lane.held_out_losses}
    taken = len(lane.losses)
    steps = range(taken + (taken in held_out))
    beyond = [None] * (len(steps) - taken)
    columns: dict[str, pa.Array] = {"step": pa.array(steps, pa.int32())}
    for name in _COLUMNS:
        columns[name] = _numbers([*(getattr(one, name) for one in lane.losses), *beyond])
    columns["learning_rate"] = _numbers([*(lane.recipe.learning_rate_at(step) for step in range(taken)), *beyond])
    columns["held_out"] = _numbers(held_out.get(step) for step in steps)
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def loss_curve(lane: Lane, *, max_points: int = 200) -> dict[str, list[float | None]]:
    """Return the losses as JSON values: column name to one number per point, and the points' `step`.

    Long curves are thinned to means over equal windows of steps; a window without a sample of a task holds None.

    Args:
        lane: The lane.
        max_points: Most points returned (>= 1).
    """
    width = max(1, -(-len(lane.losses) // max_points))
    windows = [lane.losses[start : start + width] for start in range(0, len(lane.losses), width)]
    curve: dict[str, list[float | None]] = {"step": [float(index * width) for index in range(len(windows))]}
    for name in _COLUMNS:
        curve[name] = [finite_mean(getattr(one, name) for one in window) for window in windows]
    return curve


def finite_mean(values: Iterable[float]) -> float | None:
    """Return the mean of the finite numbers, None if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _numbers(values: Iterable[float | None]) -> Any:
    """Return a float64 column; what is not finite is null."""
    import pyarrow as pa

    return pa.array([value if value is not None and math.isfinite(value) else None for value in values], pa.float64())
