"""What `omnifarm perf queue --json` and `omnifarm perf farm --json` print: the documented keys, from small real runs."""

from pathlib import Path

import pytest

from omnifarm.cli.perf_farm import farm_report, measure_farm
from omnifarm.cli.perf_queue import measure_queue
from omnifarm.errors import ConfigError
from omnifarm.store.local import LocalStore


def test_leases_are_measured_in_a_short_and_in_a_long_queue(tmp_path: Path) -> None:
    report = measure_queue(lengths=[100, 1_000], num_workers=4, leases_per_worker=3, store=str(tmp_path / "store"))
    assert set(report) == {"store", "cpus", "workers", "queued", "requests_ratio", "time_ratio"}
    assert (report["workers"], list(report["queued"])) == (4, ["100", "1000"])
    for row in report["queued"].values():
        assert set(row) == {"leases", "leases_per_s", "median_s", "p99_s", "requests_per_lease", "requests"}
        assert row["leases"] == 12
        assert 0 < row["median_s"] <= row["p99_s"]
        assert row["leases_per_s"] > 0
        # A lease is a listing, a record read and written, and its entry filed anew; more when workers meet.
        assert 4 <= row["requests_per_lease"] == pytest.approx(sum(row["requests"].values()) / 12, abs=1e-3)
    assert report["requests_ratio"] < 1.5, "a long queue costs no more"
    left = LocalStore(tmp_path / "store").list()
    assert [key for key in left if "/.omnifarm-store/" not in key] == [], "nothing but locks is left behind"


def test_a_farm_is_reported_beside_the_bare_loop() -> None:
    report = farm_report(4, bare_s=80.0, spans_s={1: 84.0, 2: 56.0}, startup_s=13.96)
    assert report == {
        "overhead": 0.05,
        "startup_s": 14.0,
        "concepts_per_hour": {"bare loop": 180.0, "1 cells": 171.4, "2 cells": 257.1},
        "speedup_of_2_cells": 1.5,
    }


def test_a_farm_is_measured_from_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a checkout of OmniFarm"):
        measure_farm(concepts=tmp_path, steps=1, lanes=1, backbone="miniature", checkout=tmp_path)
