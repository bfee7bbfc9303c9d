"""What a request gets does not depend on whom it shares its steps with; and it shares them."""

import itertools
import shutil
import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import OverloadedError, RequestError, UnknownConceptError
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Cancelled, Event, Failed, Finished, PartialImage, TextPiece, Ticket
from omnifarm.serving.requests import Answer, Limits, Picture, Request, Result
from omnifarm.serving.scheduler import Budget
from omnifarm.store.memory import MemoryStore
from omnifarm.training.precision import weights_dtype
from tests.unit.serving.concepts import EDIT, NAMES, QUICK, STYLE, commit

GPU_TOLERANCE = {torch.float32: 0.1, torch.bfloat16: 2.0}
"""Mean difference in levels of 255; stated in docs/structure.md."""


def photo(size: tuple[int, int] = (80, 64)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert("RGB")


def mixed_requests(engine: Engine) -> list[Request]:
    """Questions, drawings and edits of different sizes, steps, guidance, concepts and seeds."""
    door = engine.door
    window = SamplingOptions(num_timesteps=6, cfg_interval=(0.4, 1.0), cfg_renorm_type="channel")
    plain = SamplingOptions(num_timesteps=3, cfg_text_scale=1.0)
    return [
        door.ask("Who is <maeve>?", max_tokens=9),
        door.ask("Is <bo> in the photo?", image=photo(), max_tokens=5),
        door.ask("Who?", max_tokens=7, temperature=2.0, seed=3),
        door.ask("Compare.", concepts=["cleo", "dax"], image=[photo(), photo((64, 64))], max_tokens=4, think=True),
        door.generate("A photo of <maeve>.", size=(32, 48), options=QUICK, seed=1),
        door.generate("A photo of <bo> and <cleo>.", size=(64, 64), options=window, seed=2, replay="three_stage"),
        door.generate("A photo of a dog.", size=(48, 48), options=plain, seed=3, replay="off"),
        door.edit(photo(), "remove <dax>: dog from the photo", options=EDIT, seed=4),
        door.edit([photo((64, 64)), photo()], "put <bo> there", options=QUICK, seed=5, replay="unified"),
    ]


def crowd(engine: Engine) -> list[Request]:
    """Thirty-two requests of every kind, no two of them equal."""
    door, requests = engine.door, mixed_requests(engine)
    for index in range(32 - len(requests)):
        words = f"<{NAMES[index % 3]}> for the {index}th time"
        options = SamplingOptions(num_timesteps=3 + index % 4, cfg_interval=(0.0, 1.0))
        side = 32 + 16 * (index % 3)
        if index % 4 == 0:
            requests.append(door.ask(words, max_tokens=3 + index % 5))
        elif index % 4 == 1:
            requests.append(door.ask(words, image=photo((64, side)), max_tokens=4, temperature=1.5, seed=index))
        elif index % 4 == 2:
            requests.append(door.generate(words, size=(32, side), options=options, seed=index, replay="off"))
        else:
            requests.append(door.edit(photo((64, 64)), words, options=options, seed=index))
    return requests


def content(result: Result) -> object:
    """Everything about a result that must not depend on its neighbours: all but time."""
    if isinstance(result, Answer):
        return (result.text, result.num_tokens, result.num_prompt_tokens, result.thought, result.is_complete)
    traces = [(trace.status, trace.question, trace.answer, trace.prompt, trace.raw) for trace in result.replay]
    return (result.image.size, result.image.tobytes(), result.prompt, traces, result.num_evaluations)


def run_together(engine: Engine, requests: Sequence[Request]) -> list[object]:
    tickets = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    return [content(ticket.result(0)) for ticket in tickets]


def test_a_result_is_bit_for_bit_the_same_alone_and_among_thirty_one_others_in_any_order(
    new_engine: Callable[..., Engine],
) -> None:
    alone = [content(new_engine().run(request)) for request in crowd(new_engine())]
    assert len(alone) == 32
    assert len({repr(one) for one in alone}) == 32, "every request has a result of its own"
    together = new_engine()
    tickets = [together.submit(request) for request in crowd(together)]
    together.step()
    assert together.statistics()["running"] == 32
    while together.step():
        pass
    assert [content(ticket.result(0)) for ticket in tickets] == alone
    assert together.statistics()["steps"] < 120, "they did share their steps"
    order = torch.randperm(len(alone), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = run_together(together, [crowd(together)[index] for index in order])
    assert shuffled == [alone[index] for index in order]


def test_in_bf16_too_the_miniature_gives_the_same_alone_and_among_others() -> None:
    engine = Engine(
        load_backbone("miniature", dtype=weights_dtype("bfloat16", "cpu")), ConceptRepository(MemoryStore())
    )
    names = ["a girl in a red hat", "a dog", "a blue mug and a cat", "somebody with glasses at the sea, in winter"]

    def requests() -> list[Request]:
        door, quick = engine.door, SamplingOptions(num_timesteps=5)
        drawn = [door.generate(f"A photo of {name}.", options=quick, seed=i) for i, name in enumerate(names)]
        asked = [door.ask(f"What does {name} like?", max_tokens=6) for name in names]
        return [*drawn, door.edit(photo((96, 96)), "make it night", options=EDIT, seed=4), *asked]

    alone = [content(engine.run(request)) for request in requests()]
    assert run_together(engine, requests()) == alone
    assert run_together(engine, requests()[::-1]) == alone[::-1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", list(GPU_TOLERANCE))
def test_on_a_gpu_a_picture_is_the_same_alone_and_among_others_within_the_stated_tolerance(dtype: torch.dtype) -> None:
    engine = Engine(load_backbone("miniature", dtype=dtype, device="cuda"), ConceptRepository(MemoryStore()))

    def requests() -> list[Request]:
        door, quick = engine.door, SamplingOptions(num_timesteps=12)
        drawn = [door.generate(f"A photo of a dog and {i} cats.", options=quick, seed=i) for i in range(6)]
        return [*drawn, door.edit(photo((96, 96)), "make it night", options=EDIT, seed=4)]

    alone = [engine.run(request) for request in requests()]
    tickets = [engine.submit(request) for request in requests()]
    while engine.step():
        pass
    for expected, ticket in zip(alone, tickets, strict=True):
        found = ticket.result(0)
        assert isinstance(expected, Picture)
        assert isinstance(found, Picture)
        assert difference(found.image, expected.image) < GPU_TOLERANCE[dtype]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_engine_gives_the_same_within_rounding(
    loaded: LoadedBackbone, repository: ConceptRepository
) -> None:
    engine = Engine(loaded, repository, replay_style=STYLE)
    plain = [engine.run(request) for request in mixed_requests(engine)]
    loaded.model.set_training_mode(compiled=True)
    try:
        compiled = Engine(loaded, repository, replay_style=STYLE)
        tickets = [compiled.submit(request) for request in mixed_requests(compiled)]
        while compiled.step():
            pass
        found = [ticket.result(0) for ticket in tickets]
    finally:
        loaded.model.set_training_mode()
    for expected, one in zip(plain, found, strict=True):
        if isinstance(one, Answer):
            assert content(one) == content(expected)
        else:
            assert isinstance(expected, Picture)
            assert difference(one.image, expected.image) < 0.1


def test_requests_that_join_late_under_a_tight_budget_get_the_same(new_engine: Callable[..., Engine]) -> None:
    alone = [content(new_engine().run(request)) for request in mixed_requests(new_engine())]
    engine = new_engine(budget=Budget(step_tokens=90, draw_tokens_beside_text=30, max_running=3))
    tickets: list[Ticket] = []
    for request in mixed_requests(engine):
        tickets.append(engine.submit(request))
        for _ in range(2):
            engine.step()
    while engine.step():
        assert engine.statistics()["running"] <= 3
    assert [content(ticket.result(0)) for ticket in tickets] == alone


def test_every_row_comes_back_and_cached_prefixes_give_way(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    run_together(engine, mixed_requests(engine))
    kept = engine._prefixes._rows
    assert 0 < engine.statistics()["rows_used"] == kept
    while engine._prefixes.let_go():
        pass
    assert engine.statistics()["rows_used"] == 0


def test_a_small_pool_makes_requests_wait_and_changes_nothing(new_engine: Callable[..., Engine]) -> None:
    alone = run_together(new_engine(), mixed_requests(new_engine()))
    needed = max(
        engine._footprint.rows(request, engine._residents.get(request.concepts))
        for engine in [new_engine()]
        for request in mixed_requests(engine)
    )
    engine = new_engine(cached_tokens=needed)
    assert run_together(engine, mixed_requests(engine)) == alone


def test_a_request_that_can_never_fit_is_refused_with_the_reason(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine(cached_tokens=100)
    with pytest.raises(RequestError, match="100 cached tokens"):
        engine.submit(engine.door.generate("A dog.", size=(160, 160), options=QUICK))


def test_a_full_line_is_refused_with_the_time_to_come_back(
    loaded: LoadedBackbone, repository: ConceptRepository
) -> None:
    engine = Engine(loaded, repository, limits=Limits(max_waiting=2))
    for _ in range(2):
        engine.submit(engine.door.ask("Who?", max_tokens=1))
    with pytest.raises(OverloadedError) as refused:
        engine.submit(engine.door.ask("Who?", max_tokens=1))
    assert refused.value.facts["retry_after_s"] > 0


def test_a_cancelled_request_is_gone_from_the_next_step(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    events: list[Event] = []
    slow = SamplingOptions(num_timesteps=100)
    gone = engine.submit(engine.door.generate("A <bo>.", size=(64, 64), options=slow, replay="off"), events.append)
    stays = engine.submit(engine.door.generate("A <bo>.", size=(32, 32), options=QUICK, replay="off", seed=8))
    for _ in range(4):
        engine.step()
    gone.cancel()
    gone.cancel()
    before = engine.statistics()["step_tokens"]["draw"]
    while engine.step():
        pass
    assert isinstance(events[-1], Cancelled)
    assert engine.statistics()["step_tokens"]["draw"] - before <= 2 * 3 * 6
    alone = new_engine().generate("A <bo>.", size=(32, 32), options=QUICK, replay="off", seed=8)
    assert content(stays.result(0)) == content(alone)


def test_pieces_of_an_answer_joined_are_the_answer(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    for seed in range(4):
        events: list[Event] = []
        request = engine.door.ask("Who is <bo>?", max_tokens=40, temperature=1.5, seed=seed)
        ticket = engine.submit(request, events.append)
        while engine.step():
            pass
        answer = ticket.result(0)
        assert isinstance(answer, Answer)
        pieces = [event.text for event in events if isinstance(event, TextPiece)]
        assert "".join(pieces) == answer.text
        assert len(pieces) > 3
        assert isinstance(events[-1], Finished)
        assert answer.timings["first_token_s"] <= answer.timings["total_s"]


def test_partial_images_lead_to_the_final_one_and_change_nothing(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    options = SamplingOptions(num_timesteps=13, cfg_interval=(0.0, 1.0))
    plain = engine.generate("A <bo>.", size=(32, 32), options=options, replay="off", seed=8)
    events: list[Event] = []
    request = engine.door.generate("A <bo>.", size=(32, 32), options=options, replay="off", seed=8, partial_every=4)
    ticket = engine.submit(request, events.append)
    while engine.step():
        pass
    assert content(ticket.result(0)) == content(plain)
    partial = [event for event in events if isinstance(event, PartialImage)]
    assert [(one.index, one.step, one.num_steps) for one in partial] == [(0, 4, 12), (1, 8, 12)]
    errors = [difference(one.image, plain.image) for one in partial]
    assert errors == sorted(errors, reverse=True)
    assert events.index(partial[-1]) < len(events) - 1


def difference(one: Image.Image, other: Image.Image) -> float:
    a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() for image in (one, other))
    return float((a - b).abs().mean())


def test_many_callers_share_one_engine_without_a_thread_of_its_own(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    alone = {name: content(new_engine().ask(f"Who is <{name}>?", max_tokens=6)) for name in NAMES}
    found: dict[str, object] = {}

    def ask(name: str) -> None:
        found[name] = content(engine.ask(f"Who is <{name}>?", max_tokens=6))

    threads = [threading.Thread(target=ask, args=(name,)) for name in NAMES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_tenants_have_their_own_concepts_and_never_anothers(loaded: LoadedBackbone) -> None:
    own = {tenant: ConceptRepository(MemoryStore()) for tenant in ("a", "b", "c")}
    commit(own["a"], loaded, "maeve", seed=1)
    commit(own["b"], loaded, "maeve", seed=2)
    engine = Engine(loaded, lambda tenant: own[tenant], replay_style=STYLE)
    results = {
        tenant: content(engine.generate("A <maeve>.", size=(32, 32), options=QUICK, replay="off", tenant=tenant))
        for tenant in ("a", "b")
    }
    assert results["a"] != results["b"]
    with pytest.raises(UnknownConceptError):
        engine.ask("Who is <maeve>?", tenant="c")
    assert [manifest.name for manifest in engine.list_concepts("c")] == []
    together = [
        engine.submit(engine.door.generate("A <maeve>.", size=(32, 32), options=QUICK, replay="off", tenant=tenant))
        for tenant in "abab"
    ]
    while engine.step():
        pass
    assert [content(ticket.result(0)) for ticket in together] == [results[tenant] for tenant in "abab"]


def test_a_failing_request_does_not_disturb_the_others(
    new_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine()
    alone = content(new_engine().ask("Who is <bo>?", max_tokens=5))
    events: list[Event] = []
    say = engine._scripts.say

    def failing(text, residents):  # type: ignore[no-untyped-def]
        if "break" in text:
            raise ValueError("a mistake of ours")
        return say(text, residents)

    fine = engine.submit(engine.door.ask("Who is <bo>?", max_tokens=5))
    monkeypatch.setattr(engine._scripts, "say", failing)
    engine.submit(engine.door.ask("break"), events.append)
    while engine.step():
        pass
    assert content(fine.result(0)) == alone
    assert isinstance(events[-1], Failed)
    assert "ValueError" in str(events[-1].error)


def test_extrapolating_steps_saves_evaluations_and_stays_near(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    options = SamplingOptions(num_timesteps=21, cfg_interval=(0.0, 1.0))
    exact, reused = (
        engine.generate("A <bo>.", size=(32, 32), options=options, replay="off", seed=2, step_reuse=every)
        for every in (1, 2)
    )
    assert exact.num_evaluations == 40
    assert reused.num_evaluations == 24
    assert 0 < difference(exact.image, reused.image) < 4


def test_equal_questions_read_their_common_beginning_once(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    question = "Who is <maeve>?"
    engine.ask(question, max_tokens=1)
    read_once = engine.statistics()["step_tokens"]["read"]
    for _ in itertools.repeat(None, 3):
        engine.ask(question, max_tokens=1)
    again = (engine.statistics()["step_tokens"]["read"] - read_once) / 3
    assert again < read_once / 2
    assert engine.statistics()["prefix_hits"] == 3


def test_replay_and_prefill_share_the_cache(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine()
    first = engine.generate("A photo of <maeve>.", size=(32, 32), options=QUICK)
    misses = engine.statistics()["prefix_misses"]
    assert misses == 2, "the system prompt and the opening of the replay prompt"
    second = engine.generate("A photo of <maeve>.", size=(32, 32), options=QUICK)
    assert engine.statistics()["prefix_misses"] == misses
    assert content(first) == content(second)
    assert isinstance(second, Picture)
