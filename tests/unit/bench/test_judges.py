import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnifarm.bench.data.load import BenchData
from omnifarm.bench.judges.chat import PREFIX, ChatEndpoint, ChatSettings
from omnifarm.bench.judges.endpoint import EndpointJudge
from omnifarm.bench.judges.rubrics import read_grade, read_scores, without_name
from omnifarm.errors import ConfigError
from omnifarm.store.memory import MemoryStore
from tests.unit.bench.fake_endpoint import FakeEndpoint, serving

PICTURE = Image.fromarray(np.full((20, 20, 3), 90, np.uint8))


@pytest.fixture
def fake() -> Iterator[FakeEndpoint]:
    with serving(FakeEndpoint()) as endpoint:
        yield endpoint


def chat(fake: FakeEndpoint, *, store: MemoryStore | None = None, **settings: Any) -> ChatEndpoint:
    values = {"model": "gpt-4o-2024-11-20", "timeout_s": 5.0, "max_retries": 2, **settings}
    return ChatEndpoint(ChatSettings(base_url=fake.url, **values), api_key="secret", store=store or MemoryStore())


def item_of(drawn: BenchData, task: str) -> tuple[Any, Any]:
    concept = drawn.benchmark.concepts[0]
    return concept, drawn.benchmark.items_of(concept.name, task)[0]  # type: ignore[arg-type]


def test_every_question_is_a_conversation_of_its_own_at_temperature_0(fake: FakeEndpoint) -> None:
    asked = chat(fake)
    asked.ask(["one"], system="be brief")
    asked.ask(["two", PICTURE])
    first, second = fake.asked
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert [message["role"] for message in second["messages"]] == ["user"]
    assert first["temperature"] == second["temperature"] == 0
    assert first["model"] == "gpt-4o-2024-11-20"
    assert second["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert fake.keys == ["Bearer secret"] * 2


def test_a_reply_is_asked_for_once_and_kept_without_the_key(fake: FakeEndpoint) -> None:
    store = MemoryStore()
    assert chat(fake, store=store).ask(["how", PICTURE]).text == "1"
    again = chat(fake, store=store)
    assert again.ask(["how", PICTURE]).text == "1"
    other = Image.fromarray(np.full((20, 20, 3), 91, np.uint8))
    again.ask(["how", other])
    again.ask(["why", PICTURE])
    assert len(fake.asked) == 3
    assert again.report()["kept"] == 1
    assert again.report()["fresh"] == 2
    kept = [store.get(key).data for key in store.list(PREFIX)]
    assert len(kept) == 3
    assert not any(b"secret" in data for data in kept)


def test_another_model_is_asked_anew(fake: FakeEndpoint) -> None:
    store = MemoryStore()
    chat(fake, store=store).ask(["how"])
    chat(fake, store=store, model="gpt-4.1").ask(["how"])
    assert len(fake.asked) == 2


@pytest.mark.parametrize("trouble", [429, 500, 503])
def test_passing_trouble_is_tried_again(fake: FakeEndpoint, trouble: int) -> None:
    fake.script = [trouble, trouble]
    assert chat(fake).ask(["how"]).text == "1"
    assert len(fake.asked) == 3


def test_lasting_trouble_ends_and_is_counted_but_not_kept(fake: FakeEndpoint) -> None:
    store = MemoryStore()
    fake.script = [429] * 3
    asked = chat(fake, store=store)
    assert asked.ask(["how"]).failure.startswith("unavailable: RateLimitError")
    assert len(fake.asked) == 3
    assert asked.report()["unavailable"] == 1
    assert asked.ask(["how"]).text == "1", "trouble passes, so a later scoring asks again"


def test_an_endpoint_that_hangs_is_given_up(fake: FakeEndpoint) -> None:
    fake.script = ["hang", "hang"]
    reply = chat(fake, timeout_s=0.2, max_retries=1).ask(["how"])
    assert "Timeout" in reply.failure


@pytest.mark.parametrize("act", ["garbage", "empty", "no message", "numbers"])
def test_a_reply_without_words_is_a_failure(fake: FakeEndpoint, act: str) -> None:
    fake.script = [act] * 3
    assert chat(fake).ask(["how"]).failure.startswith("unavailable")


def test_tokens_that_nobody_counted_are_none(fake: FakeEndpoint) -> None:
    store = MemoryStore()
    fake.script = ["no usage"]
    for asked in (chat(fake, store=store), chat(fake, store=store)):
        assert asked.ask(["how"]).text == "1"
        assert asked.report()["tokens_in"] == 0
    assert len(fake.asked) == 1


def test_another_path_of_the_same_host_is_another_endpoint(fake: FakeEndpoint) -> None:
    store = MemoryStore()
    chat(fake, store=store).ask(["how"])
    fake.url = fake.url.replace("/v1", "/other/v1")
    chat(fake, store=store).ask(["how"])
    assert len(fake.asked) == 2


@pytest.mark.parametrize("act", ["refuse", "filter"])
def test_a_refusal_is_kept_and_counted(fake: FakeEndpoint, act: str) -> None:
    store = MemoryStore()
    fake.script = [act]
    asked = chat(fake, store=store)
    assert asked.ask(["who is this?"]).failure == "refused"
    assert asked.ask(["who is this?"]).failure == "refused"
    assert len(fake.asked) == 1
    assert asked.report()["refused"] == 2


def test_tokens_and_cost_are_reported_for_fresh_and_kept_replies(fake: FakeEndpoint) -> None:
    asked = chat(fake, price_in=2.5, price_out=10.0)
    asked.ask(["how"])
    asked.ask(["how"])
    report = asked.report()
    assert (report["tokens_in"], report["tokens_out"]) == (200, 20)
    assert report["cost"] == pytest.approx(0.0007)
    assert report["served_by"] == ["gpt-4o-2024-11-20-served"]


def test_no_more_questions_are_under_way_than_allowed(fake: FakeEndpoint) -> None:
    asked = chat(fake, concurrency=2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: asked.ask([f"question {number}"]), range(12)))
    assert len(fake.asked) == 12
    assert fake.most_at_once <= 2


def test_a_grade_that_cannot_be_read_is_asked_for_once_more_and_never_made_up(
    drawn: BenchData, fake: FakeEndpoint
) -> None:
    fake.words = lambda body: "It looks lovely."
    judge = EndpointJudge(chat(fake))
    verdict = judge.grade_answer(*item_of(drawn, "vqa"), "a hat")
    assert (verdict.score, verdict.failure) == (None, "unparsed")
    assert len(fake.asked) == 2
    assert judge.report()["unparsed"] == 1


def test_an_answer_is_graded_without_the_picture_and_without_the_name(drawn: BenchData, fake: FakeEndpoint) -> None:
    fake.words = lambda body: "Score: 0.5"
    concept, item = item_of(drawn, "qa")
    assert EndpointJudge(chat(fake)).grade_answer(concept, item, f"{concept.identifier} likes it").score == 0.5
    said = json.dumps(fake.asked[0])
    assert "image_url" not in said
    assert concept.identifier not in said
    assert f"<{concept.name}>" not in said


def test_an_edit_takes_the_least_of_its_sub_scores_over_ten(drawn: BenchData, fake: FakeEndpoint) -> None:
    scores = {3: [9, 4, 8], 2: [7, 6]}
    fake.words = lambda body: json.dumps({"score": scores[3 if "Third, identity" in json.dumps(body) else 2]})
    concept, item = item_of(drawn, "edit")
    verdict = EndpointJudge(chat(fake)).grade_edit(concept, item, PICTURE, PICTURE, [PICTURE])
    assert (verdict.consistency.score, verdict.quality.score) == (0.4, 0.6)
    assert verdict.consistency.parts == {"success": 9, "preservation": 4, "identity": 8}
    shown = [len([p for p in body["messages"][0]["content"] if p["type"] == "image_url"]) for body in fake.asked]
    assert shown == [3, 1], "reference, source and result for consistency; the result alone for quality"


def test_compat_judges_edits_without_references(drawn: BenchData, fake: FakeEndpoint) -> None:
    fake.words = lambda body: json.dumps({"score": [9, 4]})
    concept, item = item_of(drawn, "edit")
    verdict = EndpointJudge(chat(fake), protocol="compat").grade_edit(concept, item, PICTURE, PICTURE, [PICTURE])
    assert set(verdict.consistency.parts) == {"success", "preservation"}


def test_one_refused_half_leaves_the_other(drawn: BenchData, fake: FakeEndpoint) -> None:
    fake.script = ["refuse"]
    fake.words = lambda body: json.dumps({"score": [7, 6]})
    verdict = EndpointJudge(chat(fake)).grade_edit(*item_of(drawn, "edit"), PICTURE, PICTURE, [])
    assert verdict.consistency.failure == "refused"
    assert verdict.quality.score == 0.6


def test_a_judge_of_drawings_is_told_the_facts(drawn: BenchData, fake: FakeEndpoint) -> None:
    concept, item = item_of(drawn, "parg")
    EndpointJudge(chat(fake)).grade_drawing(concept, item, PICTURE)
    said = fake.asked[0]["messages"][1]["content"][0]["text"]
    fact = concept.spec.extra_info[0].replace(concept.identifier, "").strip(" .")
    assert fact.split(" is ")[-1] in said


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("0.5", 0.5), ("Score: 1", 1.0), ("0", 0.0), ("7", None), ("-1", None), ("good", None), ("", None)],
)
def test_a_grade_is_the_first_number_if_it_lies_in_the_scale(reply: str, grade: float | None) -> None:
    assert read_grade(reply) == grade


@pytest.mark.parametrize(
    ("reply", "is_read"),
    [
        ('{"score": [7, 8], "reasoning": "fine"}', True),
        ('```json\n{"score": [7, 8]}\n```', True),
        ('{oops} {"score": [7, 8]}', True),
        ('{"score": [7]}', False),
        ('{"score": [7, 80]}', False),
        ('{"score": ["7", 8]}', False),
        ('{"score": [true, 8]}', False),
        ("[7, 8]", False),
        ("", False),
        ('{"score": ' * 100_000, False),
    ],
)
def test_sub_scores_are_read_exactly_or_not_at_all(reply: str, is_read: bool) -> None:
    assert (read_scores(reply, ["naturalness", "artifacts"]) == {"naturalness": 7, "artifacts": 8}) is is_read


def test_names_are_replaced_in_every_spelling(drawn: BenchData) -> None:
    concept = next(one for one in drawn.benchmark.concepts if one.spec.group == "person")
    text = without_name(f"{concept.identifier} and {concept.name.title()} and <sks>", concept)
    assert text == "the person shown and the person shown and the person shown"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("will", "He will smile. Will it rain? I see Will here.", "He will smile. Will it rain? I see {} here."),
        ("adrien_brody", "Adrien Brody and Brody, adrien_brody's", "{} and {}, {}'s"),
        ("emma", "Emma, emma and EMMA; emmanuel", "{}, {} and {}; emmanuel"),
    ],
)
def test_ordinary_words_stay_and_parts_of_a_name_go(drawn: BenchData, name: str, text: str, told: str) -> None:
    concept = next(one for one in drawn.benchmark.concepts if one.spec.group == "person")
    concept = replace(concept, spec=replace(concept.spec, name=name))
    assert without_name(text, concept) == told.replace("{}", "the person shown")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"model": " "}, "model id"),
        ({"base_url": "ftp://x"}, "http"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
    ],
)
def test_settings_of_a_judge_are_checked(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        ChatSettings(**{"model": "m", **settings})
