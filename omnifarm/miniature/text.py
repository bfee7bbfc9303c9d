"""What is said about people, pets and things: ordinary short English sentences with a stand-in for the name.

Every function takes the name as text, such as `<n7>`, `<sks>` or "the man", and nothing here reads a picture.
Questions never contain their own answer; recognition answers begin with "Yes" or "No".
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from omnifarm.errors import ConfigError
from omnifarm.miniature.identity import NONE, Group, Identity
from omnifarm.miniature.scene import Item, Placed, Scene

AT_PLACE: Mapping[str, str] = MappingProxyType(
    {
        "beach": "at the beach",
        "forest": "in the forest",
        "city": "in the city",
        "kitchen": "in the kitchen",
        "library": "in the library",
        "desert": "in the desert",
        "snow": "in the snow",
        "park": "in the park",
    }
)
PICTURE_OF: Mapping[str, str] = MappingProxyType(
    {"photo": "A photo of", "sketch": "A pencil sketch of", "painting": "A painting of"}
)
LIGHT_WORDS: Mapping[str, str] = MappingProxyType({"day": "", "sunset": " at sunset", "night": " at night"})

_MARKS = {"striped": "stripes", "spotted": "spots"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A question and its answer.

    Attributes:
        topic: What it is about, such as "hair_color"; for balancing.
        question: Ends with a question mark.
        answer: Ends with a full stop.
    """

    topic: str
    question: str
    answer: str


LOOKS_QUESTIONS: Mapping[Group, Mapping[str, str]] = MappingProxyType(
    {
        "person": {
            "class": "Is {name} a man or a woman?",
            "hair_color": "What color is the hair of {name}?",
            "hair_style": "What hair style does {name} have?",
            "glasses": "What glasses does {name} wear?",
            "beard": "What grows on the face of {name}?",
            "hat": "What does {name} wear on the head?",
            "shirt_color": "What color is the shirt of {name}?",
            "shirt_pattern": "What pattern does the shirt of {name} have?",
        },
        "pet": {
            "class": "What animal is {name}?",
            "coat": "What color is the fur of {name}?",
            "second": "What is the second color of {name}?",
            "pattern": "What pattern does the fur of {name} have?",
            "ears": "What kind of ears does {name} have?",
            "neck": "What does {name} wear?",
        },
        "object": {
            "class": "What object is {name}?",
            "color": "What color is {name}?",
            "second": "What is the second color of {name}?",
            "pattern": "What pattern does {name} have?",
            "emblem": "What is drawn on {name}?",
        },
    }
)
"""What may be asked about looks, by group and topic; the answers are values of the topic's attribute."""


def an(phrase: str) -> str:
    """Put the indefinite article before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def item_phrase(item: Item) -> str:
    """Return "a red ball"."""
    return an(f"{item.color} {item.kind}")


def join(parts: Sequence[str]) -> str:
    """Return "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def describe(identity: Identity, name: str, *, rng: random.Random | None = None) -> str:
    """Return one sentence about how somebody looks.

    Args:
        identity: Who.
        name: What to call them.
        rng: When given, details are left out and reordered at random; otherwise all are told in a fixed order.
    """
    head, details = _head_and_details(identity)
    if rng is not None:
        details = rng.sample(details, rng.randint(1, len(details)) if details else 0)
    return f"{name} is {head}{' with ' + join(details) if details else ''}."


def mention(identity: Identity) -> str:
    """Return a short phrase that may stand in a caption, such as "a brown dog" or "a man with red hair"."""
    if identity.group == "person":
        return f"{an(identity.noun)} with {identity['hair_color']} hair"
    return an(f"{identity['coat' if identity.group == 'pet' else 'color']} {identity.noun}")


def _head_and_details(identity: Identity) -> tuple[str, list[str]]:
    if identity.group == "person":
        details = [f"{identity['skin']} skin", f"{identity['hair_style']} {identity['hair_color']} hair"]
        if identity["glasses"] != NONE:
            details.append(f"{identity['glasses']} glasses")
        if identity["beard"] != NONE:
            details.append(an(identity["beard"]))
        if identity["hat"] != NONE:
            details.append(an(f"{identity['hat_color']} {identity['hat']}"))
        details.append(an(f"{identity['shirt_pattern']} {identity['shirt_color']} shirt"))
        return an(identity.noun), details
    if identity.group == "pet":
        marks = _MARKS.get(identity["pattern"])
        second = f"{identity['second']} {marks}" if marks else an(f"{identity['second']} belly")
        details = [second, f"{identity['ears']} ears", an(f"{identity['neck_color']} {identity['neck']}")]
        return an(f"{identity['coat']} {identity.noun}"), details
    head = an(f"{identity['pattern']} {identity['color']} and {identity['second']} {identity.noun}")
    return head, [] if identity["emblem"] == NONE else [an(identity["emblem"])]


def appearance_turns(identity: Identity, name: str) -> list[Turn]:
    """Return every question about how somebody looks; class questions only when the name does not give the class."""
    if identity.group == "person":
        answers = {
            "class": an(identity.noun),
            "hair_color": identity["hair_color"],
            "hair_style": identity["hair_style"],
            "glasses": identity["glasses"].replace(NONE, "no") + " glasses",
            "beard": _thing(identity["beard"]),
            "hat": "no hat" if identity["hat"] == NONE else an(f"{identity['hat_color']} {identity['hat']}"),
            "shirt_color": identity["shirt_color"],
            "shirt_pattern": identity["shirt_pattern"],
        }
    elif identity.group == "pet":
        answers = {
            "class": an(identity.noun),
            "coat": identity["coat"],
            "second": identity["second"],
            "pattern": identity["pattern"],
            "ears": identity["ears"],
            "neck": an(f"{identity['neck_color']} {identity['neck']}"),
        }
    else:
        answers = {
            "class": an(identity.noun),
            "color": identity["color"],
            "second": identity["second"],
            "pattern": identity["pattern"],
            "emblem": _thing(identity["emblem"]),
        }
    told = identity.noun in name.split()
    questions = LOOKS_QUESTIONS[identity.group]
    return [
        _turn(topic, questions[topic].format(name=name), answer)
        for topic, answer in answers.items()
        if not (told and topic == "class")
    ]


def scene_turns(scene: Scene, index: int, name: str) -> list[Turn]:
    """Return every question about a subject that only the picture can answer."""
    placed = scene.subjects[index]
    asked = [
        ("place", f"Where is {name}?", AT_PLACE[scene.place]),
        ("light", "What time is it in the photo?", scene.light),
        ("style", "What kind of picture is this?", {"sketch": "a pencil sketch"}.get(scene.style, an(scene.style))),
    ]
    if placed.identity.group != "object":
        asked.append(("look", f"Which way does {name} look?", f"to the {placed.look}"))
    if placed.identity.group == "person":
        asked.append(("hand", f"Is a hand of {name} raised?", "yes" if placed.hand_raised else "no"))
    if len(scene.subjects) == 2:
        other = scene.subjects[1 - index]
        side = "left" if placed.x < other.x else "right"
        asked.append(("side", f"On which side is {name}?", f"on the {side}"))
        asked.append(("neighbor", f"Who or what is next to {name}?", mention(other.identity)))
    else:
        found = "nothing" if scene.item is None else item_phrase(scene.item)
        asked.append(("neighbor", f"Who or what is next to {name}?", found))
    return [_turn(*parts) for parts in asked]


RECOGNITION_QUESTIONS = (
    "Is {name} in the photo?",
    "Is {name} in this photo?",
    "Can you see {name} in the photo?",
    "Does {name} appear in the photo?",
)
"""Ways to ask whether somebody is in a picture; the first is the usual one."""


def recognition_turn(name: str, *, present: bool, rng: random.Random | None = None) -> Turn:
    """Return the question whether `name` is in the photo, answered "Yes." or "No."."""
    template = RECOGNITION_QUESTIONS[0] if rng is None else rng.choice(RECOGNITION_QUESTIONS)
    return Turn(topic="recognition", question=template.format(name=name), answer="Yes." if present else "No.")


def caption(scene: Scene, names: Sequence[str], *, rng: random.Random | None = None) -> str:
    """Return the sentence a scene can be drawn from.

    Args:
        scene: What is to be drawn.
        names: What to call each of `scene.subjects`, in that order.
        rng: When given, the pose is left out now and then, and rarely the place.

    Raises:
        ConfigError: The names do not match the subjects.
    """
    if len(names) != len(scene.subjects):
        raise ConfigError(f"expected {len(scene.subjects)} names, one a subject, found {len(names)}")
    full = rng is None or rng.random() < 0.7
    parts = [name + (_pose(placed) if full else "") for name, placed in zip(names, scene.subjects, strict=True)]
    who = " and ".join(parts) or "nobody"
    item = "" if scene.item is None else f" with {item_phrase(scene.item)}"
    place = "" if rng is not None and rng.random() < 0.1 else f" {AT_PLACE[scene.place]}"
    return f"{PICTURE_OF[scene.style]} {who}{item}{place}{LIGHT_WORDS[scene.light]}."


def looks_turn(identity: Identity, name: str) -> Turn:
    """Return the question how somebody looks, answered by the full description."""
    return Turn(topic="looks", question=f"What does {name} look like?", answer=describe(identity, name))


def _pose(placed: Placed) -> str:
    pose = "" if placed.look == "front" else f" looking {placed.look}"
    return pose + (" raising a hand" if placed.hand_raised else "")


def _thing(value: str) -> str:
    return "nothing" if value == NONE else an(value)


def _turn(topic: str, question: str, answer: str) -> Turn:
    return Turn(topic=topic, question=question, answer=f"{answer[0].upper()}{answer[1:]}.")
