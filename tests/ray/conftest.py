"""A cluster for the tests of this folder."""

import os
from typing import Any

import pytest


@pytest.fixture(scope="module")
def cluster() -> Any:
    """A private cluster of two CPUs, for this module."""
    ray = pytest.importorskip("ray")
    from omnifarm.farm import ray_cluster

    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    # A token of its own: Ray would otherwise leave one in the home of whoever runs the tests.
    os.environ.setdefault("RAY_AUTH_TOKEN", "0" * 64)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000)
    yield ray_cluster
    ray.shutdown()
