"""One step of all lanes, of which one may be poison: whose step fails, fails alone.

A sample that is too long, or one that needs more memory than there is, raises in the step of a whole pack. The step is
then repeated lane by lane, so that guilt is decided without neighbours; a failed step has left every lane whole.
Where the backbone is shared with other processes a step cannot be repeated without them: there the error ends the
process, the cell starts again, and the queue's way with suspects (see `JobRecord.is_suspect`) finds the lane.
"""

import logging
import traceback
from dataclasses import dataclass, field

from omnifarm.errors import StoreError, TrainingError
from omnifarm.logs import event
from omnifarm.training.lane import Lane
from omnifarm.training.workbench import Workbench

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a lane cannot be stepped."""

    reason: str
    """For the user."""
    trace: str | None = None
    """Where, for developers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepped:
    """What came of a step."""

    over: list[Lane] = field(default_factory=list)
    """Lanes that take no other step, no longer in the trainer."""
    failed: dict[str, Failure] = field(default_factory=dict)
    """Lanes whose own step raised, by name; still in the trainer."""
    waiting: dict[str, StoreError] = field(default_factory=dict)
    """Lanes that did not step because their pictures could not be fetched, by name, with the reason."""


def step_lanes(workbench: Workbench) -> Stepped:
    """Advance every lane of a workbench by one step; one whose step raises is named and the others have stepped.

    Raises:
        TrainingError: Several lanes were there and every one failed alone: it is not the lanes.
        Exception: What the step raised, when the backbone is shared or the device is broken.
    """
    trainer = workbench.trainer
    try:
        return Stepped(over=list(trainer.step()), waiting=trainer.waiting)
    except Exception as error:
        if workbench.is_shared:
            raise
        event(_logger, "step_failed", level=logging.WARNING, error=str(error), trace=traceback.format_exc())
    # Out of the handler: the error holds on to everything that the step had in memory.
    trainer.require_device()
    stepped = Stepped()
    lanes = [lane for lane in trainer.lanes if lane.is_active]
    for lane in lanes:
        try:
            stepped.over.extend(trainer.step(only=lane.name))
            stepped.waiting.update(trainer.waiting)
        except Exception as error:  # noqa: BLE001 - whatever one concept does to us must not stop the others
            reason = f"step {lane.step} failed: {type(error).__name__}: {error}"
            stepped.failed[lane.name] = Failure(reason=reason, trace=traceback.format_exc())
    if len(stepped.failed) == len(lanes) > 1:
        reason = next(iter(stepped.failed.values())).reason
        raise TrainingError(f"each of {len(lanes)} lanes failed alone, so it is none of them: {reason}")
    if not stepped.failed:
        # Each alone is well: together they do not fit.
        trainer.pack_fewer()
    return stepped
