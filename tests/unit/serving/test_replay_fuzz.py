"""Whatever a model writes, replay reads it without failing and draws something the user asked for."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from omnifarm.serving.exemplars import EXEMPLARS
from omnifarm.serving.replay import ReplayMode, ReplayStatus, ReplayStyle, parse, replay

STYLE = ReplayStyle(num_exemplars=6, max_words=12)
SCRAPS = st.sampled_from(
    [
        "Question:",
        "answer :",
        "Prompt:",
        "Request:",
        "\n",
        "<sks>",
        "<maeve>",
        "<quill>",
        "Nothing.",
        "A red kite.",
        ".",
    ]
    + [example.prompt for example in EXEMPLARS]
)
WRITTEN = st.lists(st.one_of(SCRAPS, st.text(max_size=12)), max_size=12).map(" ".join)
IDENTIFIER = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_-]*>")


@settings(deadline=None, max_examples=200)
@given(WRITTEN)
def test_any_text_parses_into_single_lines(written: str) -> None:
    lines = parse(written)
    for value in (lines.question, lines.answer, lines.prompt):
        assert value == " ".join(value.split())


@settings(deadline=None, max_examples=200)
@given(st.lists(WRITTEN, min_size=3, max_size=3), st.sampled_from([ReplayMode.UNIFIED, ReplayMode.THREE_STAGE]))
def test_any_model_gives_a_prompt_that_names_the_concept_and_no_invented_one(
    written: list[str], mode: ReplayMode
) -> None:
    request = "A photo of <maeve> with the favorite toy."
    replies = iter(written)
    trace = replay(
        request,
        concept="<maeve>",
        mode=mode,
        style=STYLE,
        complete=lambda prompt, *, with_concept, max_tokens: next(replies),
        now=lambda: 0.0,
    )
    named = set(IDENTIFIER.findall(trace.prompt))
    assert "<maeve>" in named
    assert not named & {name for example in EXEMPLARS for name in IDENTIFIER.findall(example.request)}
    assert trace.prompt == request or trace.status is ReplayStatus.USED
    assert len(trace.prompt.split()) <= STYLE.max_words + len(request.split())
