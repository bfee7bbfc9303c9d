"""Two people roll one concept back at the same moment, while a version neither wants may be committed."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import PIN_FILE, ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.errors import NotFoundError, PreconditionError
from omnifarm.store.memory import MemoryStore

SOFT = SoftTokens(und=torch.ones(3, 4), gen=torch.ones(2, 4))
FIRST = ArtifactManifest(
    name="maeve", version="v1", class_noun="dog", fingerprint="f" * 64, data_digest="d" * 64,
    tensors_digest=tensors_digest(encode_soft_tokens(SOFT)), num_und=2, num_gen=2, width=4, created_at_s=1.0,
)  # fmt: skip


class Beside(MemoryStore):
    """A store in which somebody else acts just before each write of a pin."""

    def __init__(self) -> None:
        super().__init__()
        self.acts: list[Callable[[], object]] = []

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        if key.endswith(PIN_FILE) and self.acts:
            self.acts.pop(0)()
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)


@pytest.fixture
def store() -> Beside:
    return Beside()


@pytest.fixture
def repository(store: Beside) -> ConceptRepository:
    found = ConceptRepository(store)
    for number in (1, 2):
        commit(found, number)
    return found


def commit(repository: ConceptRepository, number: int) -> None:
    repository.commit(dataclasses.replace(FIRST, version=f"v{number}", created_at_s=float(number)), SOFT)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_rollback_does_not_bring_back_a_version_that_another_has_turned_away_from(
    is_first: bool, store: Beside, repository: ConceptRepository
) -> None:
    if not is_first:
        repository.roll_back("maeve", "v2")

    def beside() -> None:
        commit(repository, 3)
        repository.roll_back("maeve", "v2")

    store.acts = [beside]
    repository.roll_back("maeve", "v1")
    assert repository.latest("maeve").version == "v1"


def test_a_commit_at_the_moment_of_a_rollback_is_the_newer_one(store: Beside, repository: ConceptRepository) -> None:
    store.acts = [lambda: commit(repository, 3)]
    repository.roll_back("maeve", "v1")
    assert repository.latest("maeve").version == "v3"


def test_a_rollback_that_others_always_overtake_is_refused(store: Beside, repository: ConceptRepository) -> None:
    key = f"artifacts/maeve/{PIN_FILE}"
    store.acts = [lambda number=number: MemoryStore.put(store, key, b"%d" % number) for number in range(99)]  # type: ignore[misc]
    with pytest.raises(PreconditionError, match=r"expected to roll <maeve> back to v1.*then repeat it"):
        repository.roll_back("maeve", "v1")


def test_a_rollback_of_a_concept_that_is_deleted_at_that_moment_says_that_there_is_none(
    store: Beside, repository: ConceptRepository
) -> None:
    repository.roll_back("maeve", "v2")
    store.acts = [lambda: repository.delete("maeve")]
    with pytest.raises(NotFoundError, match="no learned concept named 'maeve'"):
        repository.roll_back("maeve", "v1")
    assert list(store.list()) == []
