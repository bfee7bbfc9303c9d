"""Think mode in the engine: the official order of contexts, and streams that carry the thought."""

from collections.abc import Callable

import pytest
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.interleave import Interleaver
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.seeding import generator
from omnifarm.serving import scripts
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Event, ThoughtPiece
from omnifarm.serving.requests import Picture, Request
from tests.unit.serving.concepts import EDIT
from tests.unit.serving.test_batching import content, run_together
from tests.unit.serving.test_engine import almost_the_same

# Image guidance in a drawing steers away from what was said without the thought, so it shows who knows the thought.
DRAW = SamplingOptions(num_timesteps=4, cfg_img_scale=1.5, cfg_interval=(0.0, 1.0))
THOUGHT = 12


@pytest.fixture(autouse=True)
def short_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random checkpoint never ends a thought by itself."""
    monkeypatch.setattr(scripts, "MAX_THOUGHT", THOUGHT)


def photo() -> Image.Image:
    return Image.radial_gradient("L").resize((64, 80)).convert("RGB")


def run(engine: Engine, request: Request) -> tuple[Picture, list[Event]]:
    events: list[Event] = []
    ticket = engine.submit(request, events.append)
    while engine.step():
        pass
    result = ticket.result(0)
    assert isinstance(result, Picture)
    return result, events


def test_a_drawing_thinks_first_as_the_backbone_itself_does(
    new_engine: Callable[..., Engine], loaded: LoadedBackbone
) -> None:
    engine = new_engine()
    request = engine.door.generate("A photo of a dog.", size=(64, 64), options=DRAW, seed=5, think=True)
    drawn, events = run(engine, request)
    plain = Interleaver(loaded).draw(
        ["A photo of a dog."],
        options=DRAW,
        size=(64, 64),
        think=True,
        max_think_tokens=THOUGHT + 1,
        generator=generator(5, "noise"),
    )
    assert drawn.thought == plain.thought
    assert drawn.thought
    assert almost_the_same(drawn.image, plain.image)
    assert "".join(event.text for event in events if isinstance(event, ThoughtPiece)) == drawn.thought
    without = engine.generate("A photo of a dog.", size=(64, 64), options=DRAW, seed=5)
    assert not almost_the_same(drawn.image, without.image)


def test_an_edit_thinks_first_as_the_backbone_itself_does(
    new_engine: Callable[..., Engine], loaded: LoadedBackbone
) -> None:
    engine = new_engine()
    edited, events = run(engine, engine.door.edit(photo(), "make it blue", options=EDIT, seed=3, think=True))
    plain = Interleaver(loaded, generator=generator(3, "source")).draw(
        [photo(), "make it blue"],
        options=EDIT,
        think=True,
        max_think_tokens=THOUGHT + 1,
        generator=generator(3, "noise"),
    )
    assert edited.thought == plain.thought
    assert edited.thought
    assert almost_the_same(edited.image, plain.image)
    assert "".join(event.text for event in events if isinstance(event, ThoughtPiece)) == edited.thought


def test_thinking_side_by_side_gives_what_thinking_alone_does(new_engine: Callable[..., Engine]) -> None:
    def requests(engine: Engine) -> list[Request]:
        door = engine.door
        return [
            door.generate("A photo of <maeve>.", size=(32, 32), options=DRAW, seed=1, replay="off", think=True),
            door.generate("A photo of <bo>.", size=(32, 48), options=DRAW, seed=2, replay="unified", think=True),
            door.edit(photo(), "put <cleo> there", options=EDIT, seed=3, think=True),
            door.ask("Who is <dax>?", max_tokens=9, think=True),
        ]

    alone = [content(new_engine().run(request)) for request in requests(new_engine())]
    together = new_engine()
    assert run_together(together, requests(together)) == alone
