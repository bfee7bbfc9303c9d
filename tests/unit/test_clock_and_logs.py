import io
import json
import logging

import pytest

from omnifarm import logs
from omnifarm.clock import ManualClock, SystemClock


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(start_s=100.0)
    clock.sleep_s(2.5)
    clock.advance_s(1.0)
    assert clock.now_s() == clock.monotonic_s() == 103.5
    with pytest.raises(ValueError, match="runs forward"):
        clock.advance_s(-1)


def test_the_system_clock_does_not_run_backwards() -> None:
    clock = SystemClock()
    first = clock.monotonic_s()
    clock.sleep_s(0)
    assert clock.monotonic_s() >= first
    assert clock.now_s() > 1_700_000_000


def test_an_event_is_one_line_of_json_with_its_fields() -> None:
    stream = io.StringIO()
    logs.configure(level="info", stream=stream)
    logs.event(logging.getLogger("omnifarm.test"), "lease_taken", concept="<maeve>", step=3)
    line = json.loads(stream.getvalue())
    assert line["event"] == "lease_taken"
    assert (line["concept"], line["step"], line["level"]) == ("<maeve>", 3, "info")
