"""The review page: every pair side by side, decisions by click or key, saved to a file the job reads back.

The page is one static HTML file beside the table. It loads nothing from anywhere else, keeps decisions in the browser
while one works, and saves them as `decisions.json`; a browser cannot write into the folder, so the file is moved there
or named with `--decisions`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from omnifarm.concept.edit_pairs.table import Pair, PairState, decide
from omnifarm.errors import ConceptError

PAGE = "review.html"
"""The page, beside the table."""
DECISIONS = "decisions.json"
"""What the page saves."""

_SCHEMA_VERSION = 1
_REVIEWABLE = ("accepted", "rejected")


def write_page(folder: Path, pairs: Sequence[Pair]) -> None:
    """Write the review page of a folder of pairs."""
    shown = [
        {
            "id": pair.pair_id,
            "concept": pair.concept,
            "instruction": pair.instruction,
            "source": pair.source,
            "state": str(pair.state),
            "reason": pair.reason,
            "reviewer": pair.reviewer,
            "method": "kept as it is" if not pair.target else f"{pair.locator}, {pair.segmenter}, {pair.inpainter}",
            "checks": {name: round(value, 3) for name, value in pair.checks.items()},
        }
        for pair in pairs
    ]
    template = files("omnifarm.concept.edit_pairs").joinpath("review_page.html").read_text(encoding="utf-8")
    # "</script>" inside a file name would end the data early.
    data = json.dumps(shown, ensure_ascii=False).replace("<", "\\u003c")
    (folder / PAGE).write_text(template.replace("__PAIRS__", data), encoding="utf-8")


def read_decisions(path: Path) -> dict[str, Any]:
    """Read what the page saved.

    Returns:
        `{"reviewer": str, "decisions": {pair id: {"state": "accepted" | "rejected", "reason": str}}}`.

    Raises:
        ConceptError: The file cannot be read or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        decisions = values["decisions"]
        if values["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"version {values['schema_version']!r}, expected {_SCHEMA_VERSION}")
        for pair_id, decision in decisions.items():
            if decision["state"] not in _REVIEWABLE:
                raise ValueError(f"{pair_id} is {decision['state']!r}, expected one of {', '.join(_REVIEWABLE)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConceptError(
            f"expected decisions saved by {PAGE} in {path}, found {type(error).__name__}: {error}; save them again"
        ) from error
    return {
        "reviewer": str(values.get("reviewer") or ""),
        "decisions": {pair_id: {"state": one["state"], "reason": str(one.get("reason") or "")} for pair_id, one in decisions.items()},
    }  # fmt: skip


def apply_decisions(pairs: Iterable[Pair], saved: Mapping[str, Any]) -> tuple[list[Pair], list[str]]:
    """Return the pairs as decided, and the ids of decisions about pairs that do not exist."""
    decisions = dict(saved["decisions"])
    decided = []
    for pair in pairs:
        decision = decisions.pop(pair.pair_id, None)
        if decision is not None:
            state = PairState(decision["state"])
            pair = decide(pair, state=state, reason=decision["reason"], reviewer=saved["reviewer"])
        decided.append(pair)
    return decided, sorted(decisions)
