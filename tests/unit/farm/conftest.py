"""What tests of workers share: a clock that stands still, a store in memory, the tiny backbone."""

import pytest

from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.clock import ManualClock
from omnifarm.farm.submission import Backbone, inspect_backbone
from omnifarm.store.memory import MemoryStore
from tests.unit.farm.concept_folders import CHECKPOINT, RECIPE


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return inspect_backbone(str(CHECKPOINT), overrides=RECIPE)


@pytest.fixture(scope="module")
def loaded(backbone: Backbone) -> LoadedBackbone:
    return load_backbone(backbone.name)
