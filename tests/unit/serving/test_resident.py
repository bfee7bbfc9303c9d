"""Which concepts stay in memory, and whose rows are whose."""

from collections.abc import Callable

import pytest
import torch

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import StoreError, UnknownConceptError
from omnifarm.serving.engine import Engine
from omnifarm.serving.resident import Resident, ResidentConcepts
from omnifarm.store.base import ObjectInfo
from omnifarm.store.counting import CountingStore
from omnifarm.store.memory import MemoryStore
from tests.unit.serving.concepts import QUICK, commit
from tests.unit.serving.test_batching import content


class SilentStore(MemoryStore):
    """Answers nothing while it `is_silent`."""

    is_silent = False

    def head(self, key: str) -> ObjectInfo:
        if self.is_silent:
            raise StoreError("the store does not answer")
        return super().head(key)


def residents_of(
    loaded: LoadedBackbone,
    repository: ConceptRepository,
    *,
    capacity: int,
    on_gone: Callable[[str], None] = lambda label: None,
) -> ResidentConcepts:
    return ResidentConcepts(
        repository,
        fingerprint=loaded.fingerprint,
        clock=ManualClock(),
        width=loaded.config.hidden_size,
        capacity=capacity,
        on_gone=on_gone,
    )


def get(residents: ResidentConcepts, name: str) -> Resident:
    (one,) = residents.get([name])
    return one


def test_the_least_recently_used_concept_gives_way(loaded: LoadedBackbone, repository: ConceptRepository) -> None:
    residents = residents_of(loaded, repository, capacity=2)
    maeve, bo = get(residents, "maeve"), get(residents, "bo")
    assert get(residents, "maeve") is maeve
    cleo = get(residents, "cleo")
    assert len(residents) == 2
    assert get(residents, "maeve") is maeve
    assert get(residents, "cleo") is cleo
    assert get(residents, "bo") is not bo


def test_a_concept_in_use_keeps_its_rows_where_one_has_room(
    loaded: LoadedBackbone, repository: ConceptRepository
) -> None:
    residents = residents_of(loaded, repository, capacity=1)
    all_free = len(residents._free)
    in_use = get(residents, "maeve")
    learned = residents.table[in_use.rows.index].clone()
    rows_of_bo = set(get(residents, "bo").rows.index.tolist())
    get(residents, "cleo")
    rows_of_dax = set(get(residents, "dax").rows.index.tolist())
    assert len(residents) == 1
    assert rows_of_dax == rows_of_bo, "nobody used them: they went back when cleo came, and are dealt anew"
    assert not rows_of_dax & set(in_use.rows.index.tolist())
    assert torch.equal(residents.table[in_use.rows.index], learned)
    assert all_free - len(residents._free) == len(rows_of_dax) + len(in_use.rows)
    again = get(residents, "maeve")
    assert again is not in_use
    assert torch.equal(residents.table[again.rows.index], learned)
    del in_use
    assert all_free - len(residents._free) == len(again.rows)


def test_a_drawing_keeps_the_concept_that_others_crowd_out(new_engine: Callable[..., Engine]) -> None:
    alone = new_engine().generate("A photo of <maeve>.", size=(32, 32), options=QUICK, seed=1)
    engine = new_engine(concepts=1)
    ticket = engine.submit(engine.door.generate("A photo of <maeve>.", size=(32, 32), options=QUICK, seed=1))
    for name in ("bo", "cleo", "dax"):
        engine.step()
        assert not ticket.is_done
        engine.ask(f"Who is <{name}>?", max_tokens=1)
    while engine.step():
        pass
    assert content(ticket.result(0)) == content(alone)
    assert engine.statistics()["residents"] == 1


def test_one_concept_is_found_by_two_requests_however_many_there_are(loaded: LoadedBackbone) -> None:
    store = CountingStore(MemoryStore())
    repository = ConceptRepository(store)
    residents = residents_of(loaded, repository, capacity=1)
    for number in range(12):
        commit(repository, loaded, f"c{number}", seed=number + 1)
        store.reset()
        assert residents.manifest("c0").name == "c0"
        assert store.requests == {"list": 1, "get": 1}
        store.reset()
        with pytest.raises(UnknownConceptError):
            residents.manifest("c")
        assert store.requests == {"list": 1}


def test_a_page_reads_no_other_concepts(loaded: LoadedBackbone) -> None:
    store = CountingStore(MemoryStore())
    repository = ConceptRepository(store)
    residents = residents_of(loaded, repository, capacity=1)
    for number in range(12):
        commit(repository, loaded, f"c{number:02}", seed=number + 1, fingerprint="" if number % 4 else "f" * 64)
    store.reset()
    page = residents.manifests(after="c02", limit=3)
    assert [one.name for one in page] == ["c03", "c05", "c06"], "c04 is of another backbone"
    assert store.requests == {"list": 1, "get": 4}
    assert [one.name for one in residents.manifests(after="c06")] == ["c07", "c09", "c10", "c11"]
    with pytest.raises(UnknownConceptError):
        residents.manifest("c04")


def test_what_was_deleted_is_forgotten_although_nobody_asks_for_it(loaded: LoadedBackbone) -> None:
    repository = ConceptRepository(store := CountingStore(MemoryStore()))
    gone: list[str] = []
    residents = residents_of(loaded, repository, capacity=12, on_gone=gone.append)
    all_free = len(residents._free)
    names = [f"c{number:02}" for number in range(12)]
    for number, name in enumerate(names, start=1):
        commit(repository, loaded, name, seed=number)
    held = residents.get(names)
    rows_each = len(held[0].rows)
    del held
    for name in ("c00", "c07", "c11"):
        repository.delete(name)
    store.reset()
    # Twelve in turns of five: whoever is looked for late is not forgotten about.
    assert sum(residents.forget_deleted(limit=5) for _ in range(3)) == 3
    assert store.requests == {"head": 12}
    assert sorted(gone) == ["/c00", "/c07", "/c11"]
    assert residents.labels() == {f"/{name}" for name in names} - set(gone)
    assert all_free - len(residents._free) == 9 * rows_each
    store.reset()
    assert residents.forget_deleted(limit=5) == 0
    assert store.requests == {"head": 5}


def test_a_store_that_does_not_answer_makes_nobody_forget(loaded: LoadedBackbone) -> None:
    repository = ConceptRepository(store := SilentStore())
    commit(repository, loaded, "maeve", seed=1)
    residents = residents_of(loaded, repository, capacity=1)
    get(residents, "maeve")
    store.is_silent = True
    with pytest.raises(StoreError):
        residents.forget_deleted(limit=1)
    assert residents.labels() == {"/maeve"}


def test_a_deleted_concept_leaves_neither_soft_tokens_nor_what_was_read_with_it(
    loaded: LoadedBackbone,
) -> None:
    repository = ConceptRepository(MemoryStore())
    for seed, name in enumerate(("maeve", "bo"), start=1):
        commit(repository, loaded, name, seed=seed)
    engine = Engine(loaded, repository)
    for name in ("maeve", "bo"):
        engine.ask(f"Who is <{name}>?", max_tokens=1)
    both = len(engine._prefixes)
    assert engine.statistics()["residents"] == 2
    repository.delete("maeve")
    engine.forget("maeve")
    assert engine.statistics()["residents"] == 1
    assert 0 < len(engine._prefixes) < both
    # A request that was under way keeps what it read only now.
    ticket = engine.submit(engine.door.ask("Who is <bo>?", max_tokens=1))
    repository.delete("bo")
    engine.forget("bo")
    assert len(engine._prefixes) == 0
    while engine.step():
        pass
    assert ticket.is_done
    assert len(engine._prefixes) > 0
    assert engine.forget_deleted(limit=1) == 0
    assert len(engine._prefixes) == 0
