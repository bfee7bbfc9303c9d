"""The engine in a thread of its own, followed from threads and from asyncio."""

import asyncio
import threading
from collections.abc import Iterator

import pytest
import torch

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.clock import ManualClock
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ServingError, UnknownConceptError
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Cancelled, Event, Finished, PartialImage, TextPiece
from omnifarm.serving.replay import ReplayStyle
from omnifarm.serving.requests import Answer, Picture
from omnifarm.serving.worker import EngineWorker
from omnifarm.store.memory import MemoryStore
from tests.unit.serving.concepts import CHECKPOINT, QUICK, commit

ENDLESS = SamplingOptions(num_timesteps=200)


@pytest.fixture(scope="module")
def loaded() -> LoadedBackbone:
    torch.set_num_threads(1)
    return load_backbone(CHECKPOINT)


@pytest.fixture
def worker(loaded: LoadedBackbone) -> Iterator[EngineWorker]:
    repository = ConceptRepository(MemoryStore())
    commit(repository, loaded, "maeve", seed=1)
    worker = EngineWorker(Engine(loaded, repository, replay_style=ReplayStyle(max_tokens=4)))
    yield worker
    worker.close()


def test_a_ticket_gives_the_result_in_any_thread(worker: EngineWorker) -> None:
    ticket = worker.submit(worker.engine.door.ask("Who is <maeve>?", max_tokens=3))
    assert isinstance(ticket.result(), Answer)


def test_events_stream_into_asyncio_and_end_with_the_result(worker: EngineWorker) -> None:
    async def follow() -> list[object]:
        door = worker.engine.door
        options = SamplingOptions(num_timesteps=5)
        drawing = door.generate("A <maeve>.", size=(32, 32), options=options, partial_every=2, replay="off")
        return [[event async for event in worker.stream(one)] for one in (door.ask("Who?", max_tokens=4), drawing)]

    told, drawn = asyncio.run(follow())
    assert isinstance(told[-1], Finished)  # type: ignore[index]
    assert isinstance(told[0], TextPiece)  # type: ignore[index]
    assert [type(event) for event in drawn] == [PartialImage, Finished]  # type: ignore[attr-defined]


def test_leaving_a_stream_cancels_the_request(worker: EngineWorker) -> None:
    async def leave() -> None:
        request = worker.engine.door.generate(
            "A <maeve>.", size=(64, 64), options=ENDLESS, partial_every=1, replay="off"
        )
        async for _ in worker.stream(request):
            break
        while not worker.engine.is_idle:
            await asyncio.sleep(0)

    asyncio.run(leave())
    assert worker.engine.statistics()["step_tokens"]["draw"] < 200 * 18


def test_cancelling_the_task_cancels_the_request(worker: EngineWorker) -> None:
    async def cancel() -> None:
        request = worker.engine.door.generate("A <maeve>.", size=(64, 64), options=ENDLESS, replay="off")
        task = asyncio.create_task(worker.run(request))
        while not worker.engine.statistics()["running"]:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while not worker.engine.is_idle:
            await asyncio.sleep(0)

    asyncio.run(cancel())


def test_a_refused_request_raises_where_it_was_made(worker: EngineWorker) -> None:
    with pytest.raises(UnknownConceptError):
        asyncio.run(worker.run(worker.engine.door.ask("Who is <nobody>?")))


def test_many_coroutines_share_the_engine(worker: EngineWorker) -> None:
    async def gather() -> list[object]:
        door = worker.engine.door
        requests = [door.generate("A <maeve>.", size=(32, 32), options=QUICK, seed=seed) for seed in range(4)]
        return await asyncio.gather(*(worker.run(request) for request in requests))

    pictures = asyncio.run(gather())
    assert len({one.image.tobytes() for one in pictures if isinstance(one, Picture)}) == 4


def test_closing_cancels_what_is_open_and_takes_no_more(worker: EngineWorker) -> None:
    events: list[object] = []
    request = worker.engine.door.generate("A <maeve>.", size=(64, 64), options=ENDLESS, replay="off")
    ticket = worker.submit(request, events.append)
    worker.close()
    assert isinstance(events[-1], Cancelled)
    with pytest.raises(ServingError, match="cancelled"):
        ticket.result(0)
    with pytest.raises(ServingError, match="closed"):
        worker.submit(request)


def test_a_listeners_mistake_does_not_stop_the_engine(worker: EngineWorker) -> None:
    def mistaken(event: object) -> None:
        raise ValueError("a mistake of the listener's")

    door = worker.engine.door
    assert isinstance(worker.submit(door.ask("Who?", max_tokens=2), mistaken).result(), Answer)
    assert isinstance(worker.submit(door.ask("Who?", max_tokens=2)).result(), Answer)


def test_an_engine_that_ends_no_step_is_not_healthy(loaded: LoadedBackbone) -> None:
    clock = ManualClock()
    worker = EngineWorker(Engine(loaded, ConceptRepository(MemoryStore()), clock=clock), stall_s=10)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(event: Event) -> None:
        hangs.set()
        goes_on.wait()

    try:
        clock.advance_s(100)
        worker.check()
        ticket = worker.submit(worker.engine.door.ask("Who?", max_tokens=4), hang)
        hangs.wait()
        worker.check()
        clock.advance_s(9)
        worker.check()
        clock.advance_s(2)
        with pytest.raises(ServingError, match="within 10 s, found none for 11 s"):
            worker.check()
        goes_on.set()
        assert isinstance(ticket.result(), Answer)
        worker.check()
    finally:
        goes_on.set()
        worker.close()
    with pytest.raises(ServingError, match="has ended"):
        worker.check()


def test_steps_that_do_something_are_health_however_long_the_request(loaded: LoadedBackbone) -> None:
    clock = ManualClock()
    engine = Engine(loaded, ConceptRepository(MemoryStore()), clock=clock)
    engine.submit(engine.door.ask("Who?", max_tokens=9))
    stalled_s = []
    while True:
        clock.advance_s(8)
        stalled_s.append(engine.stalled_s)
        if not engine.step():
            break
    assert len(stalled_s) > 5
    assert set(stalled_s) == {8}
    clock.advance_s(8)
    assert engine.stalled_s == 0
