import json
from pathlib import Path
from typing import Any

import pytest

from omnifarm.concept.sources import LocalSource
from omnifarm.concept.spec import QA, ConceptImage, ConceptSpec, EditPair, Negative
from omnifarm.concept.spec_json import spec_from_json, spec_to_json
from omnifarm.errors import ConceptError

SOURCE = LocalSource(Path("nowhere"))


def picture(number: int, caption: str = "") -> ConceptImage:
    return ConceptImage(path=f"a/{number}.png", digest=f"{number:064x}", size=(48, 64), caption=caption)


WHOLE = ConceptSpec(
    name="maeve",
    class_noun="dog",
    images=(picture(1, "<maeve> naps"), picture(2)),
    info="<maeve> is brown, weiß and 小.",
    extra_info=("<maeve> likes rain.",),
    qa=(
        QA(question="Is <maeve> here?", answer="Yes.", image=picture(1), kind="recognition"),
        QA(question="Age?", answer="7"),
    ),
    negatives=(Negative(image=picture(3), kind="hard"), Negative(image=picture(4))),
    edits=(EditPair(source=picture(1), target=picture(5), instruction="remove <maeve>: dog from the photo"),),
    group="pet",
    source=SOURCE,
)


@pytest.mark.parametrize("spec", [WHOLE, ConceptSpec(name="a", class_noun="cup", images=(picture(1),))])
def test_a_spec_comes_back_whole(spec: ConceptSpec) -> None:
    back = spec_from_json(json.loads(json.dumps(spec_to_json(spec))), source=SOURCE, where="k")
    assert back == spec
    assert back.digest() == spec.digest()
    assert back.source is SOURCE


@pytest.mark.parametrize(
    "change",
    [{"schema_version": 2}, {"images": [{"path": "a"}]}, {"qa": [{"question": "?", "who": 1}]}, {"edits": 7}],
)
def test_what_is_no_spec_is_refused_with_its_place(change: dict[str, Any]) -> None:
    with pytest.raises(ConceptError, match=r"^k: expected a concept's spec"):
        spec_from_json(spec_to_json(WHOLE) | change, source=SOURCE, where="k")
    with pytest.raises(ConceptError, match=r"^k: expected a concept's spec"):
        spec_from_json([], source=SOURCE, where="k")
