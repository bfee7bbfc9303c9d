"""Somebody to teach, for who has no photographs at hand: a held-out inhabitant of the miniature's drawn world.

Returned as the page would have got it from a user: pictures, and a concept document that names them by key.
"""

import base64
import io
import random
from typing import Any, Literal

from PIL import Image

from omnifarm.miniature.benchmark import NAME, BenchmarkConcept, draw_benchmark
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import NOUNS
from omnifarm.miniature.render import render
from omnifarm.miniature.scene import Scene

Group = Literal["person", "pet", "object"]
WORLD = {"nouns": {group: list(nouns) for group, nouns in NOUNS.items()}, "places": list(PLACES)}
"""What the drawn world holds, for hints."""


def invent(group: Group, *, seed: int) -> dict[str, Any]:
    """Draw somebody.

    Args:
        group: What kind.
        seed: Who; the same seed gives the same somebody.

    Returns:
        `name`, `pictures` (key to PNG in base64), `document` (a concept document whose file ids are those keys, with
        `facts` instead of `extra_info` and of the questions about them: a sentence, its questions, their answer).
    """
    numbers = {"person": 0, "pet": 0, "object": 0} | {group: 1}
    (concept,) = draw_benchmark(
        seed, num_persons=numbers["person"], num_pets=numbers["pet"], num_objects=numbers["object"]
    )
    pictures = {f"photo-{i}": scene for i, scene in enumerate(concept.train)}
    others = (*concept.hard_negatives, *concept.easy_negatives)
    pictures |= {f"other-{i}": scene for i, scene in enumerate(others)}
    edits = []
    for index, case in enumerate(concept.train_edits):
        source, target = f"edit-{index}-before", f"edit-{index}-after"
        pictures |= {source: case.source, target: case.edit.target}
        edits.append({"source": source, "target": target, "instruction": _named(case.edit.instruction, concept)})
    facts, qa = _facts_and_questions(concept)
    return {
        "name": concept.name,
        "pictures": {key: _encoded(scene) for key, scene in pictures.items()},
        "document": {
            "class": concept.identity.noun,
            "group": group,
            "photos": [f"photo-{i}" for i in range(len(concept.train))],
            "captions": {f"photo-{i}": _named(text, concept) for i, text in enumerate(concept.captions)},
            "info": _named(concept.info, concept),
            "facts": facts,
            "qa": qa,
            "negatives": [f"other-{i}" for i in range(len(others))],
            "edits": edits,
        },
    }


def any_seed() -> int:
    """Return a seed nobody chose."""
    return random.SystemRandom().randrange(2**31)


def _facts_and_questions(concept: BenchmarkConcept) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    facts: list[dict[str, Any]] = [
        {"sentence": _named(sentence, concept), "questions": [], "answer": ""} for sentence in concept.extra_info
    ]
    qa = []
    for asked in concept.train_qa:
        question, answer = _named(asked.turn.question, concept), _named(asked.turn.answer, concept)
        told = answer.rstrip(".").lower()
        fact = next(
            (one for one in facts if asked.photo is None and one["sentence"].lower().endswith(f"{told}.")), None
        )
        if fact is not None:
            fact["questions"].append(question)
            fact["answer"] = answer
        else:
            photo = {} if asked.photo is None else {"photo": f"photo-{asked.photo}"}
            qa.append({"question": question, "answer": answer, **photo})
    return facts, qa


def _named(text: str, concept: BenchmarkConcept) -> str:
    return text.replace(NAME, f"<{concept.name}>")


def _encoded(scene: Scene) -> str:
    buffer = io.BytesIO()
    Image.fromarray(render(scene)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
