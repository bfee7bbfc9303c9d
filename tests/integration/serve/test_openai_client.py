"""The official `openai` client against the server: what it sends is understood, what it gets it can read."""

import base64
import io
import json
import time
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.integration.serve.conftest import SMALL, Server, picture

pytestmark = pytest.mark.slow


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def opened(b64_json: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64_json or "")))


def ask(text: str, *pictures: bytes) -> list[Any]:
    parts: list[Any] = [{"type": "text", "text": text}]
    parts += [{"type": "image_url", "image_url": {"url": data_url(data)}} for data in pictures]
    return [{"role": "user", "content": parts}]


def test_models_are_the_backbone_and_the_concepts(acme: OpenAI) -> None:
    ids = {model.id for model in acme.models.list()}
    assert ids >= {"bagel", "bagel:<maeve>", "bagel:<only-acme>"}
    assert acme.models.retrieve("bagel:<maeve>").owned_by == "omnifarm"
    with pytest.raises(openai.NotFoundError):
        acme.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("model", "text", "extra"),
    [
        ("bagel:<maeve>", "What is in the photo?", {}),
        ("bagel:maeve", "What is in the photo?", {}),
        ("bagel", "Is <maeve> in the photo?", {}),
        ("bagel", "What is in the photo?", {"concepts": ["maeve"]}),
    ],
)
def test_a_concept_is_chosen_in_three_ways(acme: OpenAI, model: str, text: str, extra: dict[str, Any]) -> None:
    answer = acme.chat.completions.create(model=model, messages=ask(text, picture()), max_tokens=4, extra_body=extra)
    assert answer.concepts == ["maeve"]  # type: ignore[attr-defined]
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert 1 <= answer.usage.completion_tokens <= 4


def test_a_streamed_answer_is_the_answer(acme: OpenAI) -> None:
    messages = ask("Who is <maeve>?")
    whole = acme.chat.completions.create(model="bagel", messages=messages, max_tokens=6)
    chunks = list(
        acme.chat.completions.create(
            model="bagel", messages=messages, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage


def test_earlier_turns_stand_before_the_question(acme: OpenAI) -> None:
    turns: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Who is <maeve>?"},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": "Where?"},
    ]
    answer = acme.chat.completions.create(model="bagel", messages=turns, max_tokens=3)
    assert answer.concepts == ["maeve"]  # type: ignore[attr-defined]
    with pytest.raises(openai.UnprocessableEntityError, match="last message"):
        acme.chat.completions.create(model="bagel", messages=turns[:3], max_tokens=3)


def test_drawings_are_repeatable_and_carry_their_trace(acme: OpenAI) -> None:
    extra = {"seed": 7, "num_timesteps": 3}
    replies = [
        acme.images.generate(model="bagel", prompt="A photo of <maeve>.", size="64x48", n=2, extra_body=extra)  # type: ignore[call-overload]
        for _ in range(2)
    ]
    first, again = replies
    assert [one.b64_json for one in first.data] == [one.b64_json for one in again.data]
    assert first.data[0].b64_json != first.data[1].b64_json
    assert [one.seed for one in first.data] == [7, 8]
    assert opened(first.data[0].b64_json).size == (64, 48)
    (trace,) = first.data[0].replay
    assert trace["mode"] == "unified"
    assert trace["prompt"] == first.data[0].revised_prompt
    assert first.size == "64x48"
    assert first.usage.output_tokens > 0


def test_steps_may_be_left_out(acme: OpenAI) -> None:
    def drawn(**extra: int) -> Any:
        body = {"num_timesteps": 9, "replay": "off", **extra}
        return acme.images.generate(model="bagel", prompt="A photo of <maeve>.", size="32x32", extra_body=body).data[0]  # type: ignore[call-overload]

    assert drawn(step_reuse=2).num_evaluations < drawn().num_evaluations
    with pytest.raises(openai.UnprocessableEntityError, match="step_reuse"):
        drawn(step_reuse=9)


def test_a_streamed_drawing_shows_pictures_on_the_way(acme: OpenAI) -> None:
    body = {"num_timesteps": 9, "replay": "off", "seed": 3}
    whole = acme.images.generate(model="bagel", prompt="A photo of <maeve>.", size="64x64", extra_body=body)  # type: ignore[call-overload]
    events = list(
        acme.images.generate(
            model="bagel",
            prompt="A photo of <maeve>.",
            size="64x64",
            stream=True,
            partial_images=2,
            extra_body=body,  # type: ignore[call-overload]
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:-1]] == [0, 1]
    assert events[-1].b64_json == whole.data[0].b64_json
    assert {opened(event.b64_json).size for event in events} == {(64, 64)}
    assert events[-1].replay[0]["status"] == "off"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_edit_keeps_the_size_of_its_source(acme: OpenAI, kind: str) -> None:
    source = ("a.png", picture(96, 64, kind=kind))
    reply = acme.images.edit(
        model="bagel:<maeve>",
        image=source,
        prompt="remove <maeve>: dog from the photo",
        extra_body={"num_timesteps": 3},
    )
    assert reply.data is not None
    assert opened(reply.data[0].b64_json).size == (96, 64)


def test_a_removal_is_looked_at_when_that_is_asked_for(acme: OpenAI) -> None:
    def edited(prompt: str, **more: int) -> Any:
        reply = acme.images.edit(
            model="bagel:<maeve>",
            image=("a.png", picture()),
            prompt=prompt,
            extra_body={"num_timesteps": 3, **more},
        )
        assert reply.data is not None
        return reply.data[0]

    unseen = edited("remove <maeve>")
    assert (unseen.num_attempts, unseen.is_gone) == (1, None), "the released weights suggest nothing"
    seen = edited("remove <maeve>", attempts=2)
    assert seen.is_gone in (True, False)
    assert seen.num_attempts == 1 or seen.num_evaluations == 2 * unseen.num_evaluations
    assert edited("add a hat to <maeve>", attempts=2).is_gone is None
    with pytest.raises(openai.UnprocessableEntityError, match="attempts"):
        edited("remove <maeve>", attempts=9)


def test_a_streamed_edit_has_its_own_event_names(acme: OpenAI) -> None:
    events = list(
        acme.images.edit(  # type: ignore[call-overload]
            model="bagel",
            image=("a.png", picture()),
            prompt="remove <maeve>",
            stream=True,
            partial_images=1,
            extra_body={"num_timesteps": 4},
        )
    )
    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_outside_its_mask_a_picture_stays_as_it_was(acme: OpenAI) -> None:
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    reply = acme.images.edit(
        model="bagel",
        image=("a.png", picture()),
        mask=("mask.png", buffer.getvalue()),
        prompt="remove <maeve>",
        extra_body={"num_timesteps": 3},
    )
    assert reply.data is not None
    before, after = Image.open(io.BytesIO(picture())).convert("RGB"), opened(reply.data[0].b64_json)
    assert before.crop((32, 0, 64, 64)).tobytes() == after.crop((32, 0, 64, 64)).tobytes()
    assert before.crop((0, 0, 32, 64)).tobytes() != after.crop((0, 0, 32, 64)).tobytes()


def test_of_several_pictures_the_last_is_changed_within_its_mask(acme: OpenAI, server: Server) -> None:
    mask = Image.new("RGBA", (96, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    first, last = picture(64, 64, seed=1), picture(96, 64, seed=2)
    reply = acme.images.edit(
        model="bagel",
        image=[("a.png", first), ("b.png", last)],
        mask=("mask.png", buffer.getvalue()),
        prompt="remove <maeve>",
        extra_body={"num_timesteps": 3},
    )
    assert reply.data is not None
    before, after = Image.open(io.BytesIO(last)).convert("RGB"), opened(reply.data[0].b64_json)
    assert after.size == (96, 64)
    assert before.crop((32, 0, 96, 64)).tobytes() == after.crop((32, 0, 96, 64)).tobytes()
    assert before.crop((0, 0, 32, 64)).tobytes() != after.crop((0, 0, 32, 64)).tobytes()


def test_a_model_that_is_to_think_first_reads_so_streamed_or_not(http: httpx.Client) -> None:
    body = {"messages": ask("Who is <maeve>?"), "max_tokens": 6}
    plain, thinking = (
        http.post("/v1/chat/completions", json={**body, "think": think}).json() for think in (False, True)
    )
    assert thinking["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    # The random checkpoint ends no thought, so that all it says counts as its answer.
    said = thinking["choices"][0]["message"]["content"]
    assert said != plain["choices"][0]["message"]["content"]
    with http.stream("POST", "/v1/chat/completions", json={**body, "think": True, "stream": True}) as reply:
        lines = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1]) == said


def test_a_drawing_after_a_thought_is_another_and_brings_it_along(acme: OpenAI) -> None:
    drawn = [
        acme.images.generate(
            model="bagel:<maeve>",
            prompt="A photo.",
            size="32x32",  # type: ignore[arg-type]
            extra_body={"num_timesteps": 3, "replay": "off", "think": think},
        ).data
        for think in (False, True)
    ]
    assert drawn[0] is not None
    assert drawn[1] is not None
    assert drawn[0][0].thought is None  # type: ignore[attr-defined]
    assert drawn[1][0].thought  # type: ignore[attr-defined]
    assert drawn[0][0].b64_json != drawn[1][0].b64_json


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_pictures_come_in_the_format_asked_for(acme: OpenAI, output_format: Any) -> None:
    reply = acme.images.generate(model="bagel", prompt="A dog.", output_format=output_format, **SMALL)  # type: ignore[call-overload]
    assert (opened(reply.data[0].b64_json).format or "").lower() == output_format


def test_errors_are_the_exceptions_that_users_of_the_client_know(acme: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        acme.chat.completions.create(model="bagel:<nobody>", messages=ask("Who?"))
    assert unknown.value.code == "concept_not_found"
    with pytest.raises(openai.UnprocessableEntityError) as wrong:
        acme.images.generate(model="bagel", prompt="A dog.", size="65x64")  # type: ignore[arg-type]
    assert wrong.value.param == "size"
    assert json.dumps(wrong.value.body)


def test_an_unknown_concept_in_a_stream_is_still_a_404(acme: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        acme.chat.completions.create(model="bagel:<nobody>", messages=ask("Who?"), stream=True)
    with pytest.raises(openai.NotFoundError):
        acme.images.generate(model="bagel", prompt="<nobody>", stream=True)


def test_a_client_that_leaves_a_stream_takes_its_drawing_with_it(server: Server, http: httpx.Client) -> None:
    body = {"prompt": "A dog.", "size": "32x32", "num_timesteps": 200, "stream": True, "partial_images": 3}
    before = server.services.engine.statistics()["steps"]
    with http.stream("POST", "/v1/images/generations", json=body) as reply:
        assert next(reply.iter_lines()) == "event: image_generation.partial_image"
    while not server.services.engine.is_idle:
        time.sleep(0.01)
    assert 40 <= server.services.engine.statistics()["steps"] - before < 199
    assert server.services.admission.working == 0
