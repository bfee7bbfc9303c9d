import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.kv_pool import NOTHING
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.errors import RequestError
from omnifarm.serving import checking
from omnifarm.serving.checking import draw_checked, removed_by
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Event, PartialImage
from omnifarm.serving.loop import Entry
from omnifarm.serving.requests import Picture
from omnifarm.serving.work import Draw, Guidance, Held, Latents, Script
from tests.unit.serving.concepts import EDIT


@pytest.fixture
def photo() -> Image.Image:
    return Image.linear_gradient("L").resize((80, 64)).convert("RGB")


@pytest.fixture
def always_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the model replies counts as Yes: the tiny backbone of the golden vectors has random weights."""
    monkeypatch.setattr(checking, "_SEEN", re.compile(""))


@pytest.mark.parametrize(
    ("instruction", "removed"),
    [
        ("Remove <maeve> from the image.", "<maeve>"),
        ("remove <maeve>: dog from the photo", "<maeve>"),
        ("remove <maeve> in the photo", "<maeve>"),
        ("Please erase <maeve-2>.", "<maeve-2>"),
        ("Take out <sks>", "<sks>"),
        ("Remove <maeve>'s hat.", None),
        ("Remove <maeve>’s hat.", None),
        ("Remove the hat of <maeve>.", None),
        ("Remove the dog.", None),
        ("Do not remove <maeve>.", None),
        ("Removes <maeve>.", None),
        ("Remove <>.", None),
        ("Add a ball next to <maeve>.", None),
    ],
)
def test_only_instructions_that_remove_a_concept_are_looked_at(instruction: str, removed: str | None) -> None:
    assert removed_by(instruction) == removed


def run(
    removed: str | None, replies: Sequence[str], *, attempts: int, changed: Sequence[int] = ()
) -> tuple[tuple[Any, int, bool | None], list[str]]:
    """Run a script over a source of two by two latent tokens, of which attempt i changes token `changed[i]`."""
    source = Image.new("RGB", (32, 32))
    pictures = [source.copy() for _ in range(attempts)]
    for picture, token in zip(pictures, changed, strict=False):
        picture.paste((255, 255, 255), (token % 2 * 16, token // 2 * 16, token % 2 * 16 + 16, token // 2 * 16 + 16))
    for number, picture in enumerate(pictures):
        # Less than an edit, and enough to tell them apart.
        picture.putpixel((0, 31), (number + 1, 0, 0))
    said: list[str] = []

    def draw(attempt: int, is_held: Tensor | None) -> Generator[Sequence[Any], list[Any], Image.Image]:
        yield []
        held = "" if is_held is None else f" holding {is_held.nonzero().flatten().tolist()}"
        said.append(f"draw {attempt}{held}")
        return pictures[attempt]

    def ask(question: str, image: Image.Image) -> Generator[Sequence[Any], list[Any], str]:
        yield []
        said.append(f"{question} {pictures.index(image)}")
        return replies[pictures.index(image)]

    script = draw_checked(removed, source=source, grid=(2, 2), draw=draw, ask=ask, attempts=attempts)
    try:
        next(script)
        while True:
            script.send([])
    except StopIteration as end:
        image, num_attempts, is_gone = end.value
    return (pictures.index(image), num_attempts, is_gone), said


def test_a_removal_is_drawn_anew_while_the_concept_is_seen() -> None:
    result, said = run("<bo>", ["Yes.", "yes, <sks> is there", "No.", "Yes."], attempts=4)
    assert result == (2, 3, True)
    about = "Is <bo> in the photo?"
    assert said == ["draw 0", f"{about} 0", "draw 1", f"{about} 1", "draw 2", f"{about} 2"]
    assert run("<bo>", ["Yesterday"], attempts=2)[0] == (0, 1, True)


def test_what_changed_while_the_concept_stayed_is_somebody_else_and_is_held_from_then_on() -> None:
    _, said = run("<bo>", ["Yes.", "Yes.", "No."], attempts=3, changed=[1, 2, 0])
    assert [one for one in said if one.startswith("draw")] == ["draw 0", "draw 1 holding [1]", "draw 2 holding [1, 2]"]


def test_when_all_attempts_are_used_the_last_stands_and_it_is_said() -> None:
    assert run("<bo>", ["Yes.", "Yes."], attempts=2)[0] == (1, 2, False)


def test_nobody_looks_at_one_attempt_or_at_another_edit() -> None:
    assert run("<bo>", [], attempts=1) == ((0, 1, None), ["draw 0"])
    assert run(None, [], attempts=3) == ((0, 1, None), ["draw 0"])


@pytest.mark.usefixtures("always_seen")
@pytest.mark.parametrize("think", [False, True])
def test_a_later_attempt_is_another_picture_and_none_is_anybodys_business(
    new_engine: Callable[..., Engine], photo: Image.Image, think: bool
) -> None:
    engine = new_engine()

    def edit(attempts: int) -> Picture:
        return engine.edit(photo, "Remove <bo>.", options=EDIT, seed=3, attempts=attempts, think=think)

    once, thrice = edit(1), edit(3)
    assert (once.num_attempts, once.is_gone) == (1, None)
    assert (thrice.num_attempts, thrice.is_gone) == (3, False)
    assert thrice.num_evaluations == 3 * once.num_evaluations
    assert thrice.image.tobytes() != once.image.tobytes()
    assert "check_s" in thrice.timings
    # Beside others, in a pool that holds what was counted and no more, it is the same.
    requests = [
        engine.door.edit(photo, f"Remove <{name}>.", options=EDIT, seed=3, attempts=3, think=think)
        for name in ("bo", "cleo")
    ]
    rows = max(engine._footprint.rows(one, engine._residents.get(one.concepts)) for one in requests)
    for capacity in (rows, 4 * rows):
        small = new_engine(cached_tokens=capacity)
        tickets = [small.submit(request) for request in requests]
        while small.step():
            pass
        assert tickets[0].result(0).image.tobytes() == thrice.image.tobytes()
        while small._prefixes.let_go():
            pass
        assert small.statistics()["rows_used"] == 0


def test_held_latents_end_as_they_were_given_and_the_others_do_not(
    loaded: LoadedBackbone, new_engine: Callable[..., Engine]
) -> None:
    drawn: list[Latents] = []
    given = torch.randn(4, loaded.config.latent_dim, generator=torch.Generator().manual_seed(1))
    is_held = torch.tensor([True, False, False, True])

    def script(held: Held | None) -> Script[None]:
        noise = torch.randn(4, loaded.config.latent_dim, generator=torch.Generator().manual_seed(2))
        guidance = Guidance(main=NOTHING, without_text=NOTHING, without_image=NOTHING)
        (latents,) = yield [Draw(guidance=guidance, grid=(2, 2), options=EDIT, noise=noise, held=held)]
        drawn.append(latents)

    loop = new_engine()._loop
    for number, held in enumerate((None, Held(tokens=given, is_held=is_held))):
        loop.submit(
            Entry(
                number=number,
                script=script(held),
                rows=100,
                tenant="",
                on_start=lambda: None,
                on_end=lambda result, error: None,
            )
        )
    while loop.step():
        pass
    free, bound = (one.tokens for one in drawn)
    assert torch.equal(bound[is_held], given[is_held])
    assert not torch.isclose(free[is_held], given[is_held]).any(dim=1).all()
    assert not torch.equal(bound[~is_held], free[~is_held]), "the others were drawn beside what is held"


@pytest.mark.usefixtures("always_seen")
def test_pictures_on_the_way_are_those_of_the_first_attempt(
    new_engine: Callable[..., Engine], photo: Image.Image
) -> None:
    engine = new_engine()
    events: list[Event] = []
    engine.submit(engine.door.edit(photo, "Remove <bo>.", options=EDIT, attempts=2, partial_every=1), events.append)
    while engine.step():
        pass
    assert [event.index for event in events if isinstance(event, PartialImage)] == [0, 1]


@pytest.mark.usefixtures("always_seen")
def test_a_name_that_is_nobodys_is_not_looked_for(new_engine: Callable[..., Engine], photo: Image.Image) -> None:
    engine = new_engine()
    settings = {"options": EDIT, "attempts": 2}
    assert engine.edit(photo, "Remove <sks>.", concepts=["bo"], **settings).num_attempts == 2
    assert engine.edit(photo, "Remove <sks>.", concepts=["bo", "cleo"], **settings).num_attempts == 1
    assert engine.edit(photo, "Remove <dax>.", concepts=["bo"], **settings).num_attempts == 1


@pytest.mark.parametrize("attempts", [0, 5])
def test_attempts_are_few(new_engine: Callable[..., Engine], photo: Image.Image, attempts: int) -> None:
    with pytest.raises(RequestError, match=f"attempts within 1..4, found {attempts}"):
        new_engine().edit(photo, "Remove <bo>.", attempts=attempts)
