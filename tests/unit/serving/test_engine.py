"""The engine on the tiny random checkpoint of the golden vectors, in process."""

from collections.abc import Sequence

import pytest
from PIL import Image, ImageChops

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.interleave import Interleaver
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import ManualClock
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ArtifactError, RequestError, UnknownConceptError
from omnifarm.seeding import generator
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import TextPiece
from omnifarm.serving.replay import ReplayStyle
from omnifarm.serving.requests import Answer, Limits
from omnifarm.store.memory import MemoryStore
from tests.unit.serving.concepts import EDIT, QUICK, commit

FACT_WORDS = ("yellow drum", "houseboat", "Utrecht")
"""What the concept's facts say and its requests do not."""


@pytest.fixture
def repository(loaded: LoadedBackbone) -> ConceptRepository:
    repository = ConceptRepository(MemoryStore())
    for seed, name in enumerate(("maeve", "bo"), start=1):
        commit(repository, loaded, name, seed=seed)
    return repository


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def engine(loaded: LoadedBackbone, repository: ConceptRepository, clock: ManualClock) -> Engine:
    style = ReplayStyle(num_exemplars=2, max_tokens=8)
    return Engine(loaded, repository, clock=clock, replay_style=style, limits=Limits(max_text_chars=200))


@pytest.fixture
def photo() -> Image.Image:
    return Image.linear_gradient("L").resize((80, 64)).convert("RGB")


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


def almost_the_same(one: Image.Image, other: Image.Image) -> bool:
    """Equal up to one level: branches in one pass add in another order (2.5e-6), and pixels are truncated."""
    difference = ImageChops.difference(one, other).getextrema()
    return one.size == other.size and max(high for _, high in difference) <= 1


def test_without_concepts_drawing_is_the_backbones_own(engine: Engine, loaded: LoadedBackbone) -> None:
    drawn = engine.generate("A photo of a dog.", size=(64, 64), options=QUICK, seed=5)
    plain = Interleaver(loaded).draw(
        ["A photo of a dog."], options=QUICK, size=(64, 64), generator=generator(5, "noise")
    )
    assert almost_the_same(drawn.image, plain.image)
    assert drawn.num_evaluations == 6


def test_editing_without_concepts_is_the_backbones_own(engine: Engine, loaded: LoadedBackbone) -> None:
    photo = Image.radial_gradient("L").resize((64, 80)).convert("RGB")
    edited = engine.edit(photo, "make it blue", options=EDIT, seed=3)
    plain = Interleaver(loaded, generator=generator(3, "source")).draw(
        [photo, "make it blue"], options=EDIT, generator=generator(3, "noise")
    )
    assert almost_the_same(edited.image, plain.image)
    assert edited.num_evaluations == 9


def test_the_same_seed_draws_the_same_picture_and_another_another(engine: Engine) -> None:
    first, again, other = (
        engine.generate("A photo of <maeve>.", size=(32, 48), options=QUICK, seed=seed, replay="off")
        for seed in (1, 1, 2)
    )
    assert same(first.image, again.image)
    assert not same(first.image, other.image)
    assert first.image.size == (48, 32)


def test_a_concept_changes_what_is_said_drawn_and_edited(engine: Engine, photo: Image.Image) -> None:
    def results(concepts: Sequence[str]) -> list[bytes]:
        drawn = engine.generate("A photo.", concepts=concepts, size=(32, 32), options=QUICK, replay="off")
        edited = engine.edit(photo, "remove it", concepts=concepts, options=EDIT)
        return [drawn.image.tobytes(), edited.image.tobytes()]

    maeve, bo, nobody, both, reversed_ = (
        results(c) for c in (["maeve"], ["bo"], [], ["maeve", "bo"], ["<bo>", "maeve"])
    )
    for kind in range(2):
        assert len({maeve[kind], bo[kind], nobody[kind], both[kind], reversed_[kind]}) == 5


def test_concepts_are_found_in_the_text_or_listed(engine: Engine) -> None:
    assert engine.ask("Who are <bo> and <maeve>?", max_tokens=2).concepts == ("bo", "maeve")
    assert engine.ask("Who?", concepts=["<maeve>", "maeve"], max_tokens=2).concepts == ("maeve",)
    named = engine.ask("Who is <maeve>?", max_tokens=6)
    listed = engine.ask("Who is <maeve>?", concepts=["maeve"], max_tokens=6)
    assert named.text == listed.text


def test_an_edit_has_the_size_of_its_resized_source(engine: Engine, photo: Image.Image) -> None:
    assert engine.edit(photo, "remove it", options=EDIT).image.size == (80, 64)


def test_requests_do_not_disturb_each_other(engine: Engine, photo: Image.Image) -> None:
    before = engine.ask("Is <maeve> in the photo?", image=photo, max_tokens=6).text
    engine.generate("A photo of <bo>.", size=(32, 32), options=QUICK)
    engine.edit(photo, "remove <maeve>: dog from the photo", options=EDIT)
    assert engine.ask("Is <maeve> in the photo?", image=photo, max_tokens=6).text == before


@pytest.mark.parametrize("mode", ["unified", "three_stage"])
def test_replay_never_sees_the_facts(engine: Engine, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts live in the soft tokens alone; every text the model reads is watched here."""
    read: list[str] = []
    scripts = engine._scripts
    say = scripts.say

    def watched(text, residents):  # type: ignore[no-untyped-def]
        read.append(text)
        return say(text, residents)

    monkeypatch.setattr(scripts, "say", watched)
    drawn = engine.generate("A photo of <maeve> with the favorite toy.", size=(32, 32), options=QUICK, replay=mode)
    assert drawn.replay[0].mode == mode
    assert len(read) >= 2
    for text in [*read, drawn.prompt]:
        assert not any(words in text for words in FACT_WORDS)


def test_every_concept_is_consulted(engine: Engine) -> None:
    drawn = engine.generate("A photo of <maeve> and <bo>.", size=(32, 32), options=QUICK)
    assert [trace.concept for trace in drawn.replay] == ["<maeve>", "<bo>"]
    assert {"<maeve>", "<bo>"} <= {word.strip(".") for word in drawn.prompt.split()}


def test_a_new_version_is_used_without_a_restart(
    engine: Engine, repository: ConceptRepository, loaded: LoadedBackbone, clock: ManualClock
) -> None:
    before = engine.generate("A photo of <maeve>.", size=(32, 32), options=QUICK, replay="off")
    commit(repository, loaded, "maeve", seed=9)
    clock.advance_s(10)
    after = engine.generate("A photo of <maeve>.", size=(32, 32), options=QUICK, replay="off")
    assert not same(before.image, after.image)


def test_a_deleted_concept_is_unknown_without_a_restart(
    engine: Engine, repository: ConceptRepository, clock: ManualClock
) -> None:
    engine.ask("Who is <bo>?", max_tokens=1)
    repository.delete("bo")
    clock.advance_s(10)
    with pytest.raises(UnknownConceptError, match="<bo>"):
        engine.ask("Who is <bo>?", max_tokens=1)
    assert [manifest.name for manifest in engine.list_concepts()] == ["maeve"]


def test_a_concept_of_another_backbone_is_refused_and_not_listed(
    engine: Engine, repository: ConceptRepository, loaded: LoadedBackbone
) -> None:
    commit(repository, loaded, "stranger", seed=4, fingerprint="f" * 64)
    with pytest.raises(ArtifactError, match="backbone"):
        engine.ask("Who is <stranger>?", max_tokens=1)
    assert "stranger" not in [manifest.name for manifest in engine.list_concepts()]


def test_wrong_requests_are_refused_at_the_door(engine: Engine, photo: Image.Image) -> None:
    with pytest.raises(RequestError, match="white space"):
        engine.ask("  ")
    with pytest.raises(RequestError, match="200 characters"):
        engine.ask("x" * 201)
    with pytest.raises(RequestError, match="control characters"):
        engine.ask("a\x00b")
    with pytest.raises(RequestError, match="multiple of 16"):
        engine.generate("A dog.", size=(60, 64))
    with pytest.raises(RequestError, match=r"within 16\.\.192"):
        engine.generate("A dog.", size=(64, 208))
    with pytest.raises(RequestError, match="num_timesteps"):
        engine.generate("A dog.", options=SamplingOptions(num_timesteps=201))
    with pytest.raises(RequestError, match="replay"):
        engine.edit(photo, "remove it", replay="perhaps")
    with pytest.raises(RequestError, match="at most 8 concepts"):
        engine.ask("Who?", concepts=[f"c{index}" for index in range(9)])
    with pytest.raises(RequestError, match="temperature"):
        engine.ask("Who?", temperature=0.0)
    with pytest.raises(RequestError, match="seed"):
        engine.generate("A dog.", seed=-1)


def test_sampling_an_answer_depends_on_the_seed_alone(engine: Engine) -> None:
    first, again = (engine.ask("Who?", max_tokens=12, temperature=2.0, seed=3).text for _ in range(2))
    others = {engine.ask("Who?", max_tokens=12, temperature=2.0, seed=seed).text for seed in range(4, 8)}
    assert first == again
    assert others - {first}


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_a_limit_counts_what_is_written_and_the_text_is_the_backbones_own(
    engine: Engine, loaded: LoadedBackbone, limit: int
) -> None:
    answer = engine.ask("Who?", max_tokens=limit)
    plain = Interleaver(loaded)
    # The official limit counts the start token.
    assert answer.text == plain.understand(["Who?"], max_tokens=limit + 1).strip()
    assert answer.text
    assert (answer.num_tokens, answer.is_complete) == (limit, False)


def test_the_first_token_is_timed_when_it_is_there(engine: Engine, clock: ManualClock) -> None:
    told_s: list[float] = []
    ticket = engine.submit(
        engine.door.ask("Who?", max_tokens=9),
        lambda event: told_s.append(clock.monotonic_s()) if isinstance(event, TextPiece) else None,
    )
    started_s = clock.monotonic_s()
    while engine.step():
        clock.advance_s(1)
    answer = ticket.result(0)
    assert isinstance(answer, Answer)
    assert answer.timings["first_token_s"] == told_s[0] - started_s
    assert told_s[-1] > told_s[0]


def test_timings_add_up(loaded: LoadedBackbone, repository: ConceptRepository, photo: Image.Image) -> None:
    engine = Engine(loaded, repository, replay_style=ReplayStyle(max_tokens=4))
    timings = engine.edit(photo, "remove <bo>: dog from the photo", options=EDIT).timings
    assert set(timings) == {"queue_s", "replay_s", "prefill_s", "denoise_s", "decode_s", "total_s"}
    assert sum(timings.values()) - timings["total_s"] <= timings["total_s"]
