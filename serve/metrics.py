"""Counts and times of one replica for Prometheus, and the exposition of all replicas together."""

import logging
import os
from collections.abc import Awaitable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from omnifarm.logs import event
from omnifarm.serving.engine import Engine

_LOG = logging.getLogger("omnifarm.serve")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """What one replica counts. Safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # Memory and open files of the replica: what a leak would show in.
        ProcessCollector(registry=self.registry)
        Gauge("omnifarm_replica_pid", "Process id of the replica on its node.", registry=self.registry).set(os.getpid())
        self.requests = Counter(
            "omnifarm_http_requests", "HTTP requests.", ["route", "method", "status"], registry=self.registry
        )
        self.request_s = Histogram(
            "omnifarm_http_request_seconds",
            "From the first byte in to the last byte out.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.refused = Counter(
            "omnifarm_refused", "Requests refused before work began.", ["reason"], registry=self.registry
        )
        self.disconnected = Counter(
            "omnifarm_disconnects", "Clients that left before their answer.", registry=self.registry
        )
        self.in_flight = Gauge("omnifarm_requests_in_flight", "Requests the replica holds.", registry=self.registry)
        self.first_token_s = Histogram(
            "omnifarm_first_token_seconds",
            "From admission to the first token of an answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.image_s = Histogram(
            "omnifarm_image_seconds",
            "From admission to the finished picture.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.tokens = Counter("omnifarm_answer_tokens", "Tokens written in answers.", registry=self.registry)

    def text(self) -> str:
        """Return the exposition of this replica."""
        return generate_latest(self.registry).decode()


class EngineFigures:
    """The engine's own counts, read when Prometheus asks.

    Args:
        engine: Its `statistics()` are read.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the families (the protocol of `prometheus_client`)."""
        figures = self._engine.statistics()
        for name, told in _GAUGES.items():
            yield GaugeMetricFamily(f"omnifarm_engine_{name}", told, value=figures[name])
        for name, told in _COUNTERS.items():
            yield CounterMetricFamily(f"omnifarm_engine_{name}", told, value=figures[name])
        tokens = CounterMetricFamily(
            "omnifarm_engine_step_tokens", "Positions computed, by what they were for.", labels=["work"]
        )
        for work, count in figures["step_tokens"].items():
            tokens.add_metric([work], count)
        yield tokens


_GAUGES = {
    "running": "Requests in the batch.",
    "waiting": "Requests that wait to join it.",
    "rows_used": "Rows of the cache in use.",
    "rows_total": "Rows of the cache.",
    "residents": "Concepts in memory.",
}
_COUNTERS = {
    "steps": "Forward passes.",
    "prefix_hits": "Cached prefixes found.",
    "prefix_misses": "Cached prefixes computed.",
}


async def answered(asked: Awaitable[list[Any]], *, own: tuple[str, str]) -> list[tuple[str, str]]:
    """Return the expositions of the replicas that answered, our own in any case.

    A replica that dies, or does not answer in time, is missing: whoever watches is most interested in the others then.

    Args:
        asked: Gives what each replica answered, or the error it died of; may itself fail.
        own: This replica's name and exposition.
    """
    try:
        answers = await asked
    except Exception as error:  # noqa: BLE001 - Ray's errors have no base of their own, and none is worth a 500
        event(_LOG, "replicas_not_asked", level=logging.WARNING, error=f"{type(error).__name__}: {error}"[:200])
        answers = []
    found = {answer[0]: answer[1] for answer in answers if isinstance(answer, tuple)}
    return list({**found, own[0]: own[1]}.items())


def together(expositions: Iterable[tuple[str, str]]) -> str:
    """Return one exposition of several replicas.

    Args:
        expositions: (replica, its exposition); every sample gets the label `replica`.
    """
    families: dict[str, Metric] = {}
    for replica, text in expositions:
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Fixed(list(families.values())))
    return generate_latest(registry).decode()


class _Fixed:
    """Families as they were given, for `generate_latest`."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
