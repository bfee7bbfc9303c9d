"""Beginnings that several requests share: never another's, and never waited for in vain."""

from collections.abc import Callable

import pytest
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ServingError
from omnifarm.serving.capacity import Capacity
from omnifarm.serving.engine import Engine
from omnifarm.serving.replay import ReplayStyle
from omnifarm.serving.scheduler import Budget
from omnifarm.store.memory import MemoryStore
from omnifarm.training.precision import weights_dtype
from tests.unit.serving.concepts import QUICK, commit
from tests.unit.serving.test_batching import content

QUESTION = "Who is <maeve>?"


@pytest.mark.parametrize("mode", ["unified", "three_stage"])
def test_a_second_concept_is_consulted_as_itself_whatever_the_cache_holds(
    loaded: LoadedBackbone, repository: ConceptRepository, mode: str
) -> None:
    """The instruction names the concept, so both openings have the same ids, and slots in the same places."""
    style = ReplayStyle(max_tokens=40)
    assert "{name}" in style.instruction
    drawn = []
    for share in (0.0, 0.25):
        engine = Engine(loaded, repository, replay_style=style, capacity=Capacity(kept_prefixes=share))
        request = engine.door.generate("A photo of <maeve> and <bo>.", size=(32, 32), options=QUICK, replay=mode)
        drawn += [content(engine.run(request)) for _ in range(2)]
        assert (engine.statistics()["prefix_hits"] > 0) == (share > 0)
    assert drawn == drawn[:1] * 4


def test_the_first_of_two_that_share_a_prefix_may_be_cancelled_while_reading_it(
    new_engine: Callable[..., Engine],
) -> None:
    alone = content(new_engine().ask(QUESTION, max_tokens=3))
    engine = new_engine(budget=Budget(step_tokens=4))
    # Takes up the first step, in which the others are let in.
    engine.submit(engine.door.ask("Who is <bo>?", max_tokens=3))
    first, second = (engine.submit(engine.door.ask(QUESTION, max_tokens=3)) for _ in range(2))
    engine.step()
    assert len(engine._loop._followers) == 1
    first.cancel()
    while engine.step():
        pass
    assert content(second.result(0)) == alone


def failing_once(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, when: Callable[[bool], bool]) -> list[str]:
    """Have the next start of a work for which `when(its beginning is known)` holds run out of memory."""
    start, failed = engine._loop._runner.start, list[str]()

    def failing(work, *, soft_table, known=None):  # type: ignore[no-untyped-def]
        if not failed and when(known is not None):
            failed.append(type(work).__name__)
            raise MemoryError("no room")
        return start(work, soft_table=soft_table, known=known)

    monkeypatch.setattr(engine._loop._runner, "start", failing)
    return failed


def test_a_prefix_whose_reading_could_not_begin_is_read_by_the_next(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = content(new_engine().ask(QUESTION, max_tokens=3))
    engine = new_engine()
    failed = failing_once(engine, monkeypatch, when=lambda is_known: True)
    first, second = (engine.submit(engine.door.ask(QUESTION, max_tokens=3)) for _ in range(2))
    for _ in range(20):
        engine.step()
    assert failed == ["Read"]
    with pytest.raises(ServingError, match="MemoryError"):
        first.result(0)
    assert content(second.result(0)) == alone


def test_who_waited_for_a_prefix_and_cannot_begin_fails_alone(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = content(new_engine().ask(QUESTION, max_tokens=3))
    engine = new_engine(budget=Budget(step_tokens=4))
    # Takes up the first step, in which the others are let in.
    engine.submit(engine.door.ask("Who is <bo>?", max_tokens=3))
    first, second, third = (engine.submit(engine.door.ask(QUESTION, max_tokens=3)) for _ in range(3))
    engine.step()
    assert len(engine._loop._followers) == 1
    failing_once(engine, monkeypatch, when=lambda is_known: True)
    first.cancel()
    for _ in range(60):
        engine.step()
    with pytest.raises(ServingError, match="MemoryError"):
        second.result(0)
    assert content(third.result(0)) == alone


def test_who_waited_for_an_opening_and_cannot_go_on_fails_alone(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    drawn = [engine.door.generate("A photo of <bo>.", size=(32, 32), options=QUICK, seed=seed) for seed in (1, 2)]
    alone = content(new_engine().run(drawn[0]))
    failed = failing_once(engine, monkeypatch, when=lambda is_known: is_known)
    first, second = (engine.submit(request) for request in drawn)
    for _ in range(60):
        engine.step()
    assert failed == ["Read"]
    assert content(first.result(0)) == alone
    with pytest.raises(ServingError, match="MemoryError"):
        second.result(0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_result_is_bit_for_bit_the_same_behind_a_prefix_that_was_read_before(dtype: str) -> None:
    # With the miniature, because matrix kernels are chosen by width and the tiny backbone's are few.
    loaded = load_backbone("miniature", dtype=weights_dtype(dtype, "cpu"))
    repository = ConceptRepository(MemoryStore())
    for seed, name in enumerate(("maeve", "bo"), start=1):
        commit(repository, loaded, name, seed=seed)
    engine = Engine(loaded, repository)
    options = SamplingOptions(num_timesteps=3)
    photo = Image.linear_gradient("L").resize((96, 96)).convert("RGB")

    def results() -> list[object]:
        return [
            engine.ask("What does <maeve> look like?", max_tokens=6).text,
            engine.ask("Is <maeve> in the photo?", image=photo, max_tokens=6).text,
            engine.generate("<maeve> and <bo> at the beach.", options=options, seed=1, replay="off").image.tobytes(),
            engine.generate("<bo> at home.", options=options, seed=1).image.tobytes(),
            engine.edit(photo, "Remove <bo>.", options=options, seed=2).image.tobytes(),
        ]

    cold = results()
    hits = engine.statistics()["prefix_hits"]
    assert results() == cold
    assert engine.statistics()["prefix_hits"] >= hits + 5
    engine.forget("maeve")
    engine.forget("bo")
    assert results() == cold
