"""What is known about somebody and never seen on their photos: home, favourite toy, best friend.

Facts are told as sentences, asked as questions, and drawn on request; a replay shows how a request that leans on a
fact is completed before it is drawn.
"""

import random
from dataclasses import dataclass

from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.scene import Item, sample_item
from omnifarm.miniature.text import AT_PLACE, Turn, item_phrase

FACT_KINDS = ("home", "toy", "friend")


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known about one inhabitant.

    Attributes:
        home: One of the places.
        toy: A thing in a colour.
        friend: A small animal in a colour.
    """

    home: str
    toy: Item
    friend: Item


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """A request to draw, worked through: what it leaves open, what is known about that, what to draw.

    Attributes:
        kind: One of `FACT_KINDS`, or "none" when nothing is open.
        request: As a user says it.
        question: What it leaves open, "Nothing." when nothing is.
        answer: The fact, "Nothing." when nothing is open.
        prompt: What to draw.
    """

    kind: str
    request: str
    question: str
    answer: str
    prompt: str

    @property
    def target(self) -> str:
        """What a model writes after `unified_request(request)`."""
        return f" {self.question}\nAnswer: {self.answer}\nPrompt: {self.prompt}"

    @property
    def exemplar(self) -> str:
        """The whole as a worked example that may stand before another request."""
        return unified_request(self.request) + self.target


def unified_request(request: str) -> str:
    """Return the text that asks for question, answer and prompt in one go."""
    return f"Request: {request}\nQuestion:"


def sample_facts(rng: random.Random) -> Facts:
    """Draw facts about somebody."""
    return Facts(home=rng.choice(PLACES), toy=sample_item(rng, friend=False), friend=sample_item(rng, friend=True))


def fact_sentences(facts: Facts, name: str) -> tuple[str, ...]:
    """Return one sentence a fact, in the order of `FACT_KINDS`."""
    return (
        f"The home of {name} is the {facts.home}.",
        f"The favorite toy of {name} is {item_phrase(facts.toy)}.",
        f"The best friend of {name} is {item_phrase(facts.friend)}.",
    )


_QUESTIONS = {
    "home": ("Where is the home of {name}?", "Where does {name} live?", "What place is the home of {name}?"),
    "toy": (
        "What is the favorite toy of {name}?",
        "Which toy does {name} like best?",
        "What does {name} love to play with?",
    ),
    "friend": ("Who is the best friend of {name}?", "Which friend does {name} have?", "Who does {name} love to meet?"),
}


def fact_turns(facts: Facts, name: str, *, wording: int = 0) -> tuple[Turn, ...]:
    """Return one question a fact.

    Args:
        facts: What is known.
        name: About whom.
        wording: Which of the three ways to ask, 0..2.
    """
    answers = {"home": f"The {facts.home}.", "toy": _answer(facts.toy), "friend": _answer(facts.friend)}
    return tuple(
        Turn(topic=kind, question=_QUESTIONS[kind][wording].format(name=name), answer=answers[kind])
        for kind in FACT_KINDS
    )


_OPEN_REQUESTS = {
    "home": ("A photo of {name} at home.", "A photo of {name} near home."),
    "toy": ("A photo of {name} with the favorite toy.", "A photo of {name} playing with the favorite toy."),
    "friend": ("A photo of {name} with the best friend.", "A photo of {name} meeting the best friend."),
}


def replays(facts: Facts, name: str, *, wording: int = 0) -> tuple[Replay, ...]:
    """Return one open request a fact, worked through; `wording` is 0 or 1."""
    drawn = {
        "home": f"A photo of {name} {AT_PLACE[facts.home]}.",
        "toy": f"A photo of {name} with {item_phrase(facts.toy)}.",
        "friend": f"A photo of {name} with {item_phrase(facts.friend)}.",
    }
    return tuple(
        Replay(
            kind=turn.topic,
            request=_OPEN_REQUESTS[turn.topic][wording].format(name=name),
            question=turn.question,
            answer=turn.answer,
            prompt=drawn[turn.topic],
        )
        for turn in fact_turns(facts, name)
    )


def closed_replay(request: str) -> Replay:
    """Return the replay of a request that leaves nothing open: it is repeated."""
    return Replay(kind="none", request=request, question="Nothing.", answer="Nothing.", prompt=request)


def _answer(item: Item) -> str:
    phrase = item_phrase(item)
    return f"{phrase[0].upper()}{phrase[1:]}."
