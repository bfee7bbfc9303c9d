"""Replay: prompts, reading what the model wrote, fallbacks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnifarm.errors import ConfigError
from omnifarm.serving.exemplars import EXEMPLARS
from omnifarm.serving.replay import (
    Lines,
    ReplayMode,
    ReplayStatus,
    ReplayStyle,
    answer_prompt,
    composer_prompt,
    parse,
    question_prompt,
    replay,
    settle,
    unified_prompt,
)

STYLE = ReplayStyle()
REQUEST = "A photo of <maeve> with her toy."


class ScriptedModel:
    """Says the given texts in turn and keeps what it was asked."""

    def __init__(self, *written: str) -> None:
        self.written = list(written)
        self.asked: list[tuple[str, bool]] = []

    def __call__(self, prompt: str, *, with_concept: bool, max_tokens: int) -> str:
        self.asked.append((prompt, with_concept))
        return self.written.pop(0)


def unified(written: str, request: str = REQUEST) -> tuple[ReplayStatus, str]:
    trace = replay(
        request,
        concept="<maeve>",
        mode=ReplayMode.UNIFIED,
        style=STYLE,
        complete=ScriptedModel(written),
        now=lambda: 0.0,
    )
    return trace.status, trace.prompt


def test_the_composed_prompt_is_drawn_with_the_concepts_own_name() -> None:
    written = "What is the toy of <sks>?\nAnswer: A black excavator.\nPrompt: A photo of <sks> with a black excavator."
    trace = replay(REQUEST, concept="<maeve>", mode=ReplayMode.UNIFIED, style=STYLE, complete=ScriptedModel(written))
    assert trace.status is ReplayStatus.USED
    assert trace.question == "What is the toy of <maeve>?"
    assert trace.answer == "A black excavator."
    assert trace.prompt == "A photo of <maeve> with a black excavator."
    assert trace.raw == (written,)


def test_a_name_that_nobody_has_mentioned_is_the_concepts() -> None:
    """A learned vector may be taken for another name that the model knows; names of the request stand for themselves."""
    written = "What is the toy of <n15>?\nAnswer: <n15> has a drum.\nPrompt: A photo of <n15> with a drum."
    trace = replay(REQUEST, concept="<maeve>", mode=ReplayMode.UNIFIED, style=STYLE, complete=ScriptedModel(written))
    assert (trace.question, trace.answer) == ("What is the toy of <maeve>?", "<maeve> has a drum.")
    assert (trace.status, trace.prompt) == (ReplayStatus.USED, "A photo of <maeve> with a drum.")
    both = "A photo of <maeve> and <bo> with a toy."
    assert unified("What?\nAnswer: A drum.\nPrompt: A photo of <n15> and <bo> with a drum.", both) == (
        ReplayStatus.USED,
        "A photo of <maeve> and <bo> with a drum.",
    )
    assert unified("What?\nAnswer: A drum.\nPrompt: A photo of <n15> and <n7> with a drum.", both) == (
        ReplayStatus.USED,
        f"{both} A drum.",
    )


def test_labels_are_read_on_one_line_too() -> None:
    status, prompt = unified("Question: What toy? Answer: A drum. Prompt: A photo of <sks> with a drum.")
    assert (status, prompt) == (ReplayStatus.USED, "A photo of <maeve> with a drum.")


def test_a_repeated_request_means_nothing_was_open() -> None:
    status, prompt = unified("Nothing.\nAnswer: Nothing.\nPrompt: A photo of <sks> with her toy")
    assert (status, prompt) == (ReplayStatus.NO_OPEN_FACT, REQUEST)


def test_a_prompt_without_the_name_gives_way_to_request_plus_answer() -> None:
    status, prompt = unified("What toy?\nAnswer: A drum.\nPrompt: A photo of a girl with a drum.")
    assert (status, prompt) == (ReplayStatus.USED, f"{REQUEST} A drum.")


def test_unreadable_text_leaves_the_request_as_it_is() -> None:
    assert unified("blah blah") == (ReplayStatus.FALLBACK_PARSE, REQUEST)
    assert unified("") == (ReplayStatus.FALLBACK_PARSE, REQUEST)


@pytest.mark.parametrize("example", EXEMPLARS, ids=lambda e: e.request)
def test_a_repeated_example_is_refused(example) -> None:
    for prompt in (
        example.prompt,
        example.prompt.replace("<" + example.prompt.split("<")[1].split(">")[0] + ">", "<sks>"),
    ):
        written = f"{example.question}\nAnswer: {example.answer}\nPrompt: {prompt}"
        assert unified(written) == (ReplayStatus.FALLBACK_LEAK, REQUEST)


def test_an_invented_name_that_the_request_itself_holds_is_no_leak() -> None:
    request = "A photo of <maeve> and <quill> with a toy."
    status, prompt = unified("What?\nAnswer: A drum.\nPrompt: A photo of <sks> and <quill> with a drum.", request)
    assert (status, prompt) == (ReplayStatus.USED, "A photo of <maeve> and <quill> with a drum.")


def test_a_second_concept_must_survive_the_rewriting() -> None:
    request = "A photo of <maeve> and <bo> with a toy."
    status, prompt = unified("What?\nAnswer: A drum.\nPrompt: A photo of <sks> with a drum.", request)
    assert (status, prompt) == (ReplayStatus.USED, f"{request} A drum.")


def test_a_rambling_prompt_is_cut_at_a_sentence() -> None:
    rambling = "A photo of <sks> with a drum. " + "And on and on " * 30
    status, prompt = unified(f"What?\nAnswer: A drum.\nPrompt: {rambling}")
    assert (status, prompt) == (ReplayStatus.USED, "A photo of <maeve> with a drum.")


def test_reading_stops_where_the_model_invents_another_request() -> None:
    lines = parse("What?\nAnswer: A drum.\nPrompt: P.\nRequest: other\nQuestion: x\nAnswer: y\nPrompt: z")
    assert lines == Lines(question="What?", answer="A drum.", prompt="P.")


def test_examples_are_nested_and_the_third_leaves_nothing_open() -> None:
    prompts = [unified_prompt(REQUEST, concept="<maeve>", style=ReplayStyle(num_exemplars=k)) for k in range(7)]
    for k, prompt in enumerate(prompts):
        assert [example.request in prompt for example in EXEMPLARS] == [index < k for index in range(6)]
        assert prompt.endswith(f"Request: {REQUEST}\nQuestion:")
    assert EXEMPLARS[2].prompt == EXEMPLARS[2].request


def test_a_backbone_without_instruction_gets_the_bare_form() -> None:
    bare = ReplayStyle(instruction="", num_exemplars=0)
    assert unified_prompt(REQUEST, concept="<maeve>", style=bare) == f"Request: {REQUEST}\nQuestion:"
    assert question_prompt(REQUEST, style=bare) == f"Request: {REQUEST}\nQuestion:"
    assert answer_prompt("What toy?", style=bare) == "Question: What toy?\nAnswer:"
    assert composer_prompt("R.", "A.", style=bare) == "Request: R.\nAnswer: A.\nPrompt:"


def test_three_stages_show_the_concept_only_to_the_memory_retriever() -> None:
    model = ScriptedModel("What is the toy of <sks>?", "A drum.", "A photo of <sks> with a drum.")
    trace = replay(REQUEST, concept="<maeve>", mode=ReplayMode.THREE_STAGE, style=STYLE, complete=model)
    assert trace.prompt == "A photo of <maeve> with a drum."
    assert [with_concept for _, with_concept in model.asked] == [False, True, False]
    assert "What is the toy of <maeve>?" in model.asked[1][0]
    assert REQUEST not in model.asked[1][0]
    assert "A drum." in model.asked[2][0]


def test_three_stages_stop_when_nothing_is_open() -> None:
    model = ScriptedModel("Nothing.")
    trace = replay(REQUEST, concept="<maeve>", mode=ReplayMode.THREE_STAGE, style=STYLE, complete=model)
    assert (trace.status, trace.prompt) == (ReplayStatus.NO_OPEN_FACT, REQUEST)


def test_replay_off_asks_nobody() -> None:
    trace = replay(REQUEST, concept="<maeve>", mode=ReplayMode.OFF, style=STYLE, complete=ScriptedModel())
    assert (trace.status, trace.prompt, trace.raw) == (ReplayStatus.OFF, REQUEST, ())


def test_a_style_with_unknown_or_wild_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        ReplayStyle.from_defaults({"temperature": 1})
    with pytest.raises(ConfigError, match="num_exemplars"):
        ReplayStyle(num_exemplars=7)


@settings(max_examples=200, deadline=None)
@given(
    written=st.lists(
        st.sampled_from(
            ["Question:", "Answer:", "Prompt:", "Request:", "\n", "<sks>", "<quill>", " a drum", ".", "Nothing."]
        )
        | st.text(max_size=12),
        max_size=12,
    ).map("".join),
    request=st.text(min_size=1, max_size=40),
)
def test_whatever_the_model_writes_the_request_keeps_its_names(written: str, request: str) -> None:
    asked = f"A photo of <maeve>. {request}"
    status, prompt = unified(written, asked)
    assert status in ReplayStatus
    assert "<maeve>" in prompt
    assert "<quill>" not in prompt or "<quill>" in asked
    if status is not ReplayStatus.USED:
        assert prompt == asked


@settings(max_examples=100, deadline=None)
@given(lines=st.builds(Lines, question=st.text(), answer=st.text(), prompt=st.text()))
def test_settling_never_raises(lines: Lines) -> None:
    settle(REQUEST, concept="<maeve>", lines=lines, style=STYLE)
