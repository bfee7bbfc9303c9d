"""A leased job and what a worker makes of it, from the lane's first step to the commit."""

from dataclasses import dataclass

from omnifarm.concept.spec import ConceptSpec
from omnifarm.farm.job import JobRecord
from omnifarm.farm.stepping import Failure
from omnifarm.training.lane import Lane
from omnifarm.training.workbench import Finished


@dataclass(kw_only=True, slots=True)
class Held:
    """One lane and its job; the worker that holds it changes it."""

    record: JobRecord
    """The job as last renewed."""
    spec: ConceptSpec
    """What is learned."""
    lane: Lane
    """How far it is."""
    saved_step: int
    """Step of its newest checkpoint."""
    ended_s: float = 0.0
    """When its last step was over, on the monotonic clock."""
    finished: Finished | None = None
    """What it left, once that is made."""
    is_written: bool = False
    """Whether its artifact may be this worker's: a store can fail behind a write."""
    waits_since_s: float | None = None
    """Since when its pictures cannot be fetched, on the monotonic clock; None while they can."""
    failure: Failure | None = None
    """Why its attempt is over without a result, if another may go better."""

    @property
    def is_on_trial(self) -> bool:
        """Whether it is a suspect that has not got a checkpoint further: nothing is to join it."""
        lease = self.record.lease
        return self.record.is_suspect and lease is not None and self.saved_step <= lease.from_step
