"""What tests of the engine share: the tiny backbone, four concepts on it, and engines of any capacity."""

from collections.abc import Callable

import pytest
import torch

from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.serving.capacity import Capacity
from omnifarm.serving.engine import Engine
from omnifarm.store.memory import MemoryStore
from tests.unit.serving.concepts import CHECKPOINT, NAMES, STYLE, commit


@pytest.fixture(scope="module")
def loaded() -> LoadedBackbone:
    torch.set_num_threads(1)
    return load_backbone(CHECKPOINT)


@pytest.fixture(scope="module")
def repository(loaded: LoadedBackbone) -> ConceptRepository:
    repository = ConceptRepository(MemoryStore())
    for seed, name in enumerate(NAMES, start=1):
        commit(repository, loaded, name, seed=seed)
    return repository


@pytest.fixture
def new_engine(loaded: LoadedBackbone, repository: ConceptRepository) -> Callable[..., Engine]:
    def build(**capacity: object) -> Engine:
        return Engine(loaded, repository, replay_style=STYLE, capacity=Capacity(**capacity))  # type: ignore[arg-type]

    return build
