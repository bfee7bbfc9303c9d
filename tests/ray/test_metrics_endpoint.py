"""What Prometheus would scrape: a farm's numbers from Ray's own endpoint, under the names that alerts and dashboard ask for."""

import time
from typing import Any

import httpx
import pytest

from omnifarm.farm.metrics import COUNTERS, GAUGES, HISTOGRAMS

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    # What Ray and its dependencies warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]
VALUES = {
    **{f"ray_{name}": 3.0 for name in COUNTERS},
    **{f"ray_{name}": 2.5 for name in GAUGES},
    **{f"ray_{name}_count": 1.0 for name in HISTOGRAMS},
    # Ray keeps of an observation in which bucket it fell, from 2 to 5 here, and adds up the buckets' middles.
    **{f"ray_{name}_sum": 3.5 for name in HISTOGRAMS},
}


def test_every_number_of_a_farm_can_be_scraped(cluster: Any) -> None:
    import ray

    metrics = cluster.RayMetrics()
    for name in COUNTERS:
        metrics.count(name, 1.0)
        metrics.count(name, 2.0)
        metrics.count(name, 0.0)
    for name in GAUGES:
        metrics.gauge(name, 9.0)
        metrics.gauge(name, 2.5)
    for name in HISTOGRAMS:
        metrics.observe(name, 4.0)
    (node,) = ray.nodes()
    url = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}
    deadline = time.monotonic() + 120  # numbers travel every ten seconds
    while found != VALUES and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            found = _ours(httpx.get(url, timeout=10).text)
        except httpx.HTTPError:
            continue
    assert found == VALUES


def _ours(text: str) -> dict[str, float]:
    """Return the farm's samples by name, buckets of histograms left out."""
    lines = [line for line in text.splitlines() if line.startswith("ray_omnifarm_") and "_bucket{" not in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}
