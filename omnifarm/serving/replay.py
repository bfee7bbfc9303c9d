"""Explicit knowledge replay: before drawing, the concept's understanding side fills in what a request leaves open.

One conversation with the model, `Request -> Question -> Answer -> Prompt`, either in one call (unified) or in three
(intent parser, memory retriever, prompt composer). This file writes the prompts, reads the answers and decides what
to draw; it runs no model: the caller lends a `complete` function. Facts come from the learned soft tokens only:
nothing here is ever given a concept's facts (paper section 3.2 B; the prompt's wording is ours).

Identifiers: the request names a concept as `<maeve>`; text the model writes spells it `<sks>`, or by a name that nobody
has mentioned.
"""

import re
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Protocol

from omnifarm.errors import ConfigError
from omnifarm.serving.exemplars import EXEMPLARS, Exemplar

WRITTEN_IDENTIFIER = "<sks>"
"""How the model spells the concept in what it writes; the frozen head cannot write a learned vector."""

_LABELS = ("Request", "Question", "Answer", "Prompt")
_LABEL = re.compile(r"(?<![\w<])(request|question|answer|prompt)[ \t]*:[ \t]*", re.IGNORECASE)
_IDENTIFIER = re.compile(r"<[A-Za-z0-9][A-Za-z0-9_-]*>")
_NOTHING = {"", "nothing", "none", "n/a", "nothing is left open"}
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")


class ReplayMode(StrEnum):
    """How a request is completed before it is drawn."""

    UNIFIED = "unified"
    """One call writes question, answer and prompt."""
    THREE_STAGE = "three_stage"
    """Three calls, one per line."""
    OFF = "off"
    """The request is drawn as it stands."""


class ReplayStatus(StrEnum):
    """What became of a replay."""

    USED = "used"
    """The composed prompt is drawn."""
    NO_OPEN_FACT = "no_open_fact"
    """The model found nothing open; the request is drawn as it stands."""
    FALLBACK_PARSE = "fallback_parse"
    """What the model wrote could not be read; the request is drawn as it stands."""
    FALLBACK_LEAK = "fallback_leak"
    """The model repeated a worked example; the request is drawn as it stands."""
    OFF = "off"
    """Replay was not asked for."""


_DEFAULT_INSTRUCTION = (
    "You know facts about {name}. Rewrite the image request so that a painter who has never met {name} can draw it "
    "correctly. First write the question the request leaves open, then answer it from what you know, then write the "
    "new request. If nothing is left open, repeat the request. Write the name as " + WRITTEN_IDENTIFIER + ". Do not "
    "invent facts. Use exactly three lines: Question, Answer, Prompt."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayStyle:
    """How replay talks to one backbone; a backbone may bring its own in its `defaults`."""

    instruction: str = _DEFAULT_INSTRUCTION
    """Opening paragraph; `{name}` is the concept's identifier. Empty for a backbone that was trained on the bare form."""
    num_exemplars: int = 6
    """How many worked examples are shown, 0..6."""
    max_tokens: int = 96
    """New tokens per call, 1..1000."""
    max_words: int = 60
    """A longer composed prompt is cut at a sentence."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_exemplars <= len(EXEMPLARS):
            raise ConfigError(
                f"expected num_exemplars in 0..{len(EXEMPLARS)}, found {self.num_exemplars}", field="num_exemplars"
            )
        if not 1 <= self.max_tokens <= 1000:
            raise ConfigError(f"expected max_tokens in 1..1000, found {self.max_tokens}", field="max_tokens")
        if self.max_words < 1:
            raise ConfigError(f"expected max_words of at least 1, found {self.max_words}", field="max_words")

    @classmethod
    def from_defaults(cls, defaults: Mapping[str, Any]) -> "ReplayStyle":
        """Build the style from a backbone's `defaults["replay"]` block.

        Raises:
            ConfigError: The block names a setting that does not exist.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(defaults) - known)
        if unknown:
            raise ConfigError(f"expected replay settings among {sorted(known)}, found {unknown}; remove them")
        return cls(**defaults)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayTrace:
    """The audit of one replay: what was asked, what the concept answered, what is drawn."""

    status: ReplayStatus
    mode: ReplayMode
    concept: str
    """Identifier of the concept that was consulted; empty when replay is off."""
    request: str
    """The request as it came."""
    question: str
    """What the model found open."""
    answer: str
    """What the soft tokens know about it."""
    prompt: str
    """What is drawn in the end."""
    raw: tuple[str, ...]
    """Every text the model wrote, as decoded."""
    duration_s: float
    """Wall time of all calls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """What replay asks of the model: greedy text for a prompt."""

    prompt: str
    """The text to continue."""
    opening: str
    """What every prompt of this kind begins with; worth keeping in a cache."""
    with_concept: bool
    """Whether the concept's system prompt stands before it."""
    max_tokens: int
    """New tokens at most."""


class Complete(Protocol):
    """The model as a function."""

    def __call__(self, prompt: str, *, with_concept: bool, max_tokens: int) -> str:
        """Continue `prompt`; with the concept's system prompt before it iff `with_concept`."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Lines:
    """What a model wrote, by label; empty where the label is missing."""

    question: str = ""
    answer: str = ""
    prompt: str = ""


def unified_prompt(request: str, *, concept: str, style: ReplayStyle) -> str:
    """Return the one-call prompt: instruction, worked examples, the request, and an open `Question:`."""
    blocks = [style.instruction.replace("{name}", concept)] if style.instruction else []
    blocks += [_block(example, _LABELS) for example in EXEMPLARS[: style.num_exemplars]]
    blocks.append(f"Request: {_one_line(request)}\nQuestion:")
    return "\n".join(blocks)


def question_prompt(request: str, *, style: ReplayStyle) -> str:
    """Stage one, the intent parser: which question does the request leave open?"""
    blocks = [_block(example, ("Request", "Question")) for example in EXEMPLARS[: style.num_exemplars]]
    return "\n".join([*blocks, f"Request: {_one_line(request)}\nQuestion:"])


def answer_prompt(question: str, *, style: ReplayStyle) -> str:
    """Stage two, the memory retriever: the question alone, after the concept's system prompt."""
    blocks = [_block(example, ("Question", "Answer")) for example in EXEMPLARS[: style.num_exemplars]]
    return "\n".join([*blocks, f"Question: {_one_line(question)}\nAnswer:"])


def composer_prompt(request: str, answer: str, *, style: ReplayStyle) -> str:
    """Stage three, the prompt composer: request and answer in, new request out."""
    blocks = [_block(example, ("Request", "Answer", "Prompt")) for example in EXEMPLARS[: style.num_exemplars]]
    return "\n".join([*blocks, f"Request: {_one_line(request)}\nAnswer: {_one_line(answer)}\nPrompt:"])


def parse(written: str, *, first: str = "Question") -> Lines:
    """Read labelled lines out of what the model wrote.

    Args:
        written: Decoded text; anything at all. It continues a prompt that ended with the label `first`.
        first: Label the text is the continuation of.

    Returns:
        The first value of each label. A repeated `Request:` ends the reading: from there on the model invents.
    """
    found: dict[str, str] = {}
    label, start = first.lower(), 0
    for match in [*_LABEL.finditer(written), None]:
        value = _one_line(written[start : match.start() if match else len(written)])
        if value:
            found.setdefault(label, value)
        if match is None or match.group(1).lower() == "request":
            break
        label, start = match.group(1).lower(), match.end()
    return Lines(question=found.get("question", ""), answer=found.get("answer", ""), prompt=found.get("prompt", ""))


def settle(request: str, *, concept: str, lines: Lines, style: ReplayStyle) -> tuple[ReplayStatus, str]:
    """Decide what is drawn.

    Args:
        request: The request as it came.
        concept: Identifier of the concept that was consulted.
        lines: What the model wrote, the concept already spelled as `concept`.
        style: For the length limit and the examples that were shown.

    Returns:
        Status and prompt. The prompt always names every identifier that the request names.
    """
    shown = EXEMPLARS[: style.num_exemplars]
    prompt = _shorten(lines.prompt, max_words=style.max_words)
    if not prompt:
        nothing_open = _is_nothing(lines.question) and bool(lines.question)
        return (ReplayStatus.NO_OPEN_FACT if nothing_open else ReplayStatus.FALLBACK_PARSE), request
    if _leaks(prompt, request, shown):
        return ReplayStatus.FALLBACK_LEAK, request
    if _normal(prompt) == _normal(request):
        return ReplayStatus.NO_OPEN_FACT, request
    named = set(_IDENTIFIER.findall(request)) or {concept}
    if named <= set(_IDENTIFIER.findall(prompt)):
        return ReplayStatus.USED, prompt
    answer = _shorten(lines.answer, max_words=style.max_words)
    if _is_nothing(answer) or _leaks(answer, request, shown):
        return ReplayStatus.FALLBACK_PARSE, request
    return ReplayStatus.USED, f"{request} {answer}"


def conversation(
    request: str,
    *,
    concept: str,
    mode: ReplayMode,
    style: ReplayStyle,
    now: Callable[[], float] = time.perf_counter,
) -> Generator[Call, str, ReplayTrace]:
    """Complete a request from what one concept's soft tokens know: yields calls, is sent what the model wrote.

    Args:
        request: The user's request, naming concepts by identifier.
        concept: Identifier of the concept to consult, such as `<maeve>`.
        mode: Unified, three-stage or off.
        style: How to talk to this backbone.
        now: Seconds that only grow.

    Returns:
        The trace; its `prompt` is what to draw. Never raises for anything the model writes.
    """
    if mode is ReplayMode.OFF:
        return untouched(request)
    started = now()
    ask = _ask_once if mode is ReplayMode.UNIFIED else _ask_thrice
    lines, raw = yield from ask(request, concept=concept, style=style)
    status, prompt = settle(request, concept=concept, lines=lines, style=style)
    return ReplayTrace(
        status=status,
        mode=mode,
        concept=concept,
        request=request,
        question=lines.question,
        answer=lines.answer,
        prompt=prompt,
        raw=raw,
        duration_s=now() - started,
    )


def replay(
    request: str,
    *,
    concept: str,
    mode: ReplayMode,
    style: ReplayStyle,
    complete: Complete,
    now: Callable[[], float] = time.perf_counter,
) -> ReplayTrace:
    """Hold the `conversation` with a model that is a function; arguments and result as there."""
    talk = conversation(request, concept=concept, mode=mode, style=style, now=now)
    written = None
    while True:
        try:
            call = talk.send(written)  # type: ignore[arg-type]
        except StopIteration as end:
            trace: ReplayTrace = end.value
            return trace
        written = complete(call.prompt, with_concept=call.with_concept, max_tokens=call.max_tokens)


def untouched(request: str) -> ReplayTrace:
    """The trace of a request that is drawn as it stands because replay is off."""
    return ReplayTrace(
        status=ReplayStatus.OFF,
        mode=ReplayMode.OFF,
        concept="",
        request=request,
        question="",
        answer="",
        prompt=request,
        raw=(),
        duration_s=0.0,
    )


def spell(written: str, *, concept: str, known: Collection[str] = ()) -> str:
    """Put the concept's own identifier where the model wrote `<sks>` or a name that nobody has mentioned.

    The frozen head cannot write a learned vector, so it writes the name it takes the vector for: as a rule the
    placeholder, now and then another that it knows.

    Args:
        written: What the model wrote.
        concept: Identifier of the concept that was consulted.
        known: Identifiers that the prompt names; they stand for themselves.
    """
    return _IDENTIFIER.sub(lambda found: found.group() if found.group() in known else concept, written)


def _known(request: str, style: ReplayStyle) -> frozenset[str]:
    """Return the identifiers of a request and of the worked examples before it."""
    shown = (example.request for example in EXEMPLARS[: style.num_exemplars])
    return frozenset(name for text in (request, *shown) for name in _IDENTIFIER.findall(text))


_Talk = Generator[Call, str, tuple[Lines, tuple[str, ...]]]


def _ask_once(request: str, *, concept: str, style: ReplayStyle) -> _Talk:
    prompt = unified_prompt(request, concept=concept, style=style)
    written = yield _call(prompt, with_concept=True, style=style)
    return parse(spell(written, concept=concept, known=_known(request, style))), (written,)


def _ask_thrice(request: str, *, concept: str, style: ReplayStyle) -> _Talk:
    """Stop early where there is nothing to ask or nothing was remembered."""
    known = _known(request, style)
    first = yield _call(question_prompt(request, style=style), with_concept=False, style=style)
    question = parse(spell(first, concept=concept, known=known)).question
    if _is_nothing(question):
        return Lines(question=question), (first,)
    second = yield _call(answer_prompt(question, style=style), with_concept=True, style=style)
    answer = parse(spell(second, concept=concept, known=known), first="Answer").answer
    if _is_nothing(answer):
        return Lines(question=question, answer=answer), (first, second)
    third = yield _call(composer_prompt(request, answer, style=style), with_concept=False, style=style)
    prompt = parse(spell(third, concept=concept, known=known), first="Prompt").prompt
    return Lines(question=question, answer=answer, prompt=prompt), (first, second, third)


def _call(prompt: str, *, with_concept: bool, style: ReplayStyle) -> Call:
    """Instruction and worked examples come first in every prompt; the request's own lines, one or two, are last."""
    last_example_ends = max(prompt.rfind("\nRequest:"), prompt.rfind("\nQuestion:", 0, prompt.rfind("\n")), 0)
    opening = prompt[:last_example_ends]
    return Call(prompt=prompt, opening=opening, with_concept=with_concept, max_tokens=style.max_tokens)


def _block(example: Exemplar, labels: Sequence[str]) -> str:
    return "\n".join(f"{label}: {getattr(example, label.lower())}" for label in labels)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _normal(text: str) -> str:
    return re.sub(r"[\s.!?]+$", "", _one_line(text).casefold())


def _is_nothing(text: str) -> bool:
    return _normal(text) in _NOTHING


def _leaks(text: str, request: str, shown: Sequence[Exemplar]) -> bool:
    """Whether `text` repeats a worked example or names one of the invented concepts that the request does not name."""
    invented = {name for example in shown for name in _IDENTIFIER.findall(example.request)}
    if set(_IDENTIFIER.findall(text)) & (invented - set(_IDENTIFIER.findall(request))):
        return True
    if _normal(text) == _normal(request):
        return False
    return any(_bare(text) == _bare(example.prompt) for example in shown)


def _bare(text: str) -> str:
    """`text` without names, so that an example is recognised under the user's identifier too."""
    return _normal(_one_line(_IDENTIFIER.sub("", text)))


def _shorten(text: str, *, max_words: int) -> str:
    """`text` if it is short enough, else its leading sentences that fit; empty when not even one does."""
    words = text.split()
    if len(words) <= max_words:
        return text
    head = " ".join(words[:max_words])
    ends = [match.end() for match in _SENTENCE_END.finditer(head)]
    return head[: ends[-1]] if ends else ""
