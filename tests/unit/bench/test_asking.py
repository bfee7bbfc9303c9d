import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from omnifarm.bench.asking import ask_all
from omnifarm.bench.data.load import BenchData
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import TASKS, BenchConcept
from omnifarm.clock import ManualClock
from omnifarm.errors import NotFoundError, ServingError, StoreError
from omnifarm.store.memory import MemoryStore


class Painter:
    """A system that answers with its own words and paints noise of the seed's colour."""

    def __init__(self, *, before: Callable[[int], None] = lambda number: None) -> None:
        self.fitted: list[str] = []
        self.calls = 0
        self._before, self._lock = before, threading.Lock()

    def fit(self, concept: BenchConcept) -> None:
        self.fitted.append(concept.name)

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        self._count()
        return Reply(text=f"{question} {'with' if picture else 'without'} a picture")

    def generate(self, prompt: str, *, seed: int) -> Reply:
        self._count()
        pixels = np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)
        return Reply(picture=Image.fromarray(pixels), trace={"status": "used", "prompt": prompt})

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        return self.generate(instruction, seed=seed)

    def _count(self) -> None:
        with self._lock:
            self.calls += 1
            number = self.calls
        self._before(number)


class InterruptedWorkError(Exception):
    """What a killed process would be."""


def stop_after(number: int) -> Callable[[int], None]:
    def before(call: int) -> None:
        if call > number:
            raise InterruptedWorkError

    return before


def filed(store: MemoryStore) -> dict[str, bytes]:
    # How long a reply took, and beside how many others, is no part of the reply.
    return {key: store.get(key).data for key in store.list() if key.endswith(".png")} | {
        key: store.get(key).data.split(b'"timings"')[0] for key in store.list() if key.endswith(".json")
    }


def ask(system: Painter, drawn: BenchData, store: MemoryStore, **options: object) -> int:
    replies = ReplyFile(store, prefix="r/ours/seed0")
    return ask_all(system, drawn.benchmark, replies, tasks=TASKS, base_seed=0, **options)  # type: ignore[arg-type]


def test_everything_is_asked_once(drawn: BenchData) -> None:
    store, system = MemoryStore(), Painter()
    assert ask(system, drawn, store) == len(drawn.benchmark.items) == system.calls
    assert system.fitted == [one.name for one in drawn.benchmark.concepts]
    assert ask(system, drawn, store) == 0
    assert system.fitted == [one.name for one in drawn.benchmark.concepts], "nothing missing, nothing fitted"


def test_interrupted_and_shared_work_leaves_the_same_replies(drawn: BenchData) -> None:
    whole, cut, shared = MemoryStore(), MemoryStore(), MemoryStore()
    ask(Painter(), drawn, whole)
    with pytest.raises(InterruptedWorkError):
        ask(Painter(before=stop_after(7)), drawn, cut)
    assert ask(Painter(), drawn, cut) == len(drawn.benchmark.items) - 7
    for concept in reversed(drawn.benchmark.concepts):
        ask(Painter(), drawn, shared, concepts=[concept.name])
    assert filed(whole) == filed(cut) == filed(shared)


def test_items_asked_at_once_are_under_way_together_and_leave_the_same_replies(drawn: BenchData) -> None:
    alone, together = MemoryStore(), MemoryStore()
    ask(Painter(), drawn, alone)
    concept = drawn.benchmark.concepts[0]
    # Nobody gets past the second call before two are under way.
    meeting = threading.Barrier(2, timeout=20)

    def before(call: int) -> None:
        if call <= 2:
            meeting.wait()

    system = Painter(before=before)
    assert ask(system, drawn, together, at_once=4, concepts=[concept.name]) == system.calls
    ask(Painter(), drawn, together, at_once=3)
    assert filed(together) == filed(alone)
    replies = ReplyFile(together, prefix="r/ours/seed0")
    assert replies.read(drawn.benchmark.items_of(concept.name)[0]).at_once == 4


def test_the_seconds_of_a_process_are_divided_among_its_replies(drawn: BenchData) -> None:
    clock, store = ManualClock(), MemoryStore()

    class Slow(Painter):
        def fit(self, concept: BenchConcept) -> None:
            clock.sleep_s(5)

    asked = ask(Slow(before=lambda number: clock.sleep_s(2)), drawn, store, clock=clock)
    replies = ReplyFile(store, prefix="r/ours/seed0")
    found = [reply.timings for _, reply in replies.read_all(list(drawn.benchmark.items))]
    assert {one["total_s"] for one in found} == {2}
    assert sum(one["spent_s"] for one in found) == 2 * asked + 5 * len(drawn.benchmark.concepts)


def test_a_picture_without_its_record_does_not_count(drawn: BenchData) -> None:
    store = MemoryStore()
    ask(Painter(), drawn, store)
    key = next(key for key in store.list() if key.endswith(".png"))
    store.delete(key.removesuffix(".png") + ".json")
    assert ask(Painter(), drawn, store) == 1


def test_a_failing_item_is_written_and_the_others_go_on(drawn: BenchData) -> None:
    def fails(call: int) -> None:
        if call == 3:
            raise ServingError("out of paint")

    store = MemoryStore()
    assert ask(Painter(before=fails), drawn, store) == len(drawn.benchmark.items)
    replies = ReplyFile(store, prefix="r/ours/seed0")
    failures = [reply.failure for _, reply in replies.read_all(list(drawn.benchmark.items)) if reply.failure]
    assert failures == ["out of paint"]
    assert ask(Painter(), drawn, store) == 0
    assert ask(Painter(), drawn, store, retry_failed=True) == 1
    assert not any(reply.failure for _, reply in replies.read_all(list(drawn.benchmark.items)))


def test_a_concept_that_cannot_be_fitted_fails_alone(drawn: BenchData) -> None:
    class Picky(Painter):
        def fit(self, concept: BenchConcept) -> None:
            if concept.spec.group == "pet":
                raise ServingError("no pets")

    store = MemoryStore()
    ask(Picky(), drawn, store)
    replies = ReplyFile(store, prefix="r/ours/seed0")
    pet = next(one for one in drawn.benchmark.concepts if one.spec.group == "pet")
    failed = {item.concept for item, reply in replies.read_all(list(drawn.benchmark.items)) if reply.failure}
    assert failed == {pet.name}


def test_pictures_and_traces_come_back_as_they_were(drawn: BenchData) -> None:
    store = MemoryStore()
    ask(Painter(), drawn, store)
    replies = ReplyFile(store, prefix="r/ours/seed0")
    item = next(item for item in drawn.benchmark.items if item.task == "pure")
    expected = Painter().generate(item.text, seed=item.seed(0))
    assert replies.picture(item).tobytes() == expected.picture.tobytes()  # type: ignore[union-attr]
    assert replies.read(item).trace == expected.trace
    assert replies.read(item).timings["total_s"] >= 0


def test_replies_to_other_questions_and_damaged_ones_are_refused(drawn: BenchData) -> None:
    store = MemoryStore()
    replies = ReplyFile(store, prefix="r/ours/seed0")
    item = drawn.benchmark.items[0]
    with pytest.raises(NotFoundError):
        replies.read(item)
    replies.write(item, Reply(text="Yes."), seed=1)
    with pytest.raises(StoreError, match="another name"):
        replies.read(replace(item, text="Another question?"))
    store.put(f"r/ours/seed0/{item.concept}/{item.id}.json", b"{}")
    with pytest.raises(StoreError, match="no reply of this version"):
        replies.read(item)
