"""Numbers about a running farm, for Prometheus: names here, the way out in `farm/ray_cluster.py`."""

from typing import Protocol

COUNTERS = {
    "omnifarm_steps_total": "Optimizer steps taken, over all lanes.",
    "omnifarm_tokens_total": "Tokens computed in training; those that samples share count once.",
    "omnifarm_concepts_committed_total": "Concepts committed by this worker.",
    "omnifarm_attempts_failed_total": "Attempts that ended in an error, and jobs given up because worker after worker fell silent.",
    "omnifarm_lease_takeovers_total": "Jobs taken over after their worker fell silent.",
    "omnifarm_leases_lost_total": "Lanes let go because somebody else took the job over.",
    "omnifarm_store_errors_total": "Requests that failed after every retry.",
}
"""Counters by name, with what they count."""

GAUGES = {
    "omnifarm_lanes": "Concepts in training.",
    "omnifarm_loss": "Mean loss of the lanes' last steps.",
    "omnifarm_queue_ready": "Jobs that wait for a worker.",
    "omnifarm_queue_under_way": "Jobs held by workers, or resting after a failed attempt.",
    "omnifarm_queue_failed": "Jobs given up.",
    "omnifarm_cells": "Cells running for a driver.",
}
"""Gauges by name, with what they show."""

HISTOGRAMS = {"omnifarm_commit_seconds": "From a lane's last step to its committed job."}
"""Histograms by name, with what they show; seconds."""


class Metrics(Protocol):
    """Takes numbers; never fails its caller. Names must be in the tables above."""

    def count(self, name: str, value: float = 1.0) -> None:
        """Add `value` (> 0) to a counter."""
        ...

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        ...


class NoMetrics:
    """Where nobody collects numbers."""

    def count(self, name: str, value: float = 1.0) -> None:
        """See `Metrics.count`."""

    def gauge(self, name: str, value: float) -> None:
        """See `Metrics.gauge`."""

    def observe(self, name: str, value: float) -> None:
        """See `Metrics.observe`."""
