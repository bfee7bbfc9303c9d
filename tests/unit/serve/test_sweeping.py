"""When a replica looks for what was deleted, and when it sweeps."""

from pathlib import Path
from typing import cast

import pytest

from omnifarm.clock import ManualClock
from omnifarm.errors import StoreError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.serving.engine import Engine
from serve.origins import Origins
from serve.spaces import Spaces
from serve.sweeping import EVERY_S, LOOK_EVERY_S, Sweeper
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE


class OverError(Exception):
    """The test has seen enough."""


class ShortClock(ManualClock):
    """Time that ends after a while."""

    def sleep_s(self, duration_s: float) -> None:
        super().sleep_s(duration_s)
        if self.monotonic_s() > 2.5 * EVERY_S:
            raise OverError


class Noting(Sweeper):
    """Notes when it did what; its looks all fail."""

    looked: list[float]
    swept: list[float]

    def look(self) -> int:
        self.looked.append(self._clock.monotonic_s())
        raise StoreError("the store does not answer")

    def sweep(self) -> int:
        self.swept.append(self._clock.monotonic_s())
        return super().sweep()


def test_looks_are_frequent_sweeps_are_not_and_neither_ends_the_other(tmp_path: Path) -> None:
    clock = ShortClock(0.0)
    spaces = Spaces(str(tmp_path), backbone=inspect_backbone(str(CHECKPOINT), overrides=RECIPE), clock=clock)
    # Nothing here looks, so no engine is needed.
    sweeper = Noting(spaces, engine=cast(Engine, None), origins=Origins(), clock=clock)
    sweeper.looked, sweeper.swept = [], []
    with pytest.raises(OverError):
        sweeper.run_forever()
    assert sweeper.swept == [0, EVERY_S, 2 * EVERY_S]
    assert sweeper.looked[:3] == [0, LOOK_EVERY_S, 2 * LOOK_EVERY_S]
