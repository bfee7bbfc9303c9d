"""OmniPBench's edit split beside a UnifyBench folder: edits to learn from and edits to be scored, one JSON a line.

    <root>/omnipbench_edit/train/<c>/pairs.jsonl    {"source", "target", "instruction", "qc": {"status"}, ...}
    <root>/omnipbench_edit/test/<c>/edits.jsonl     {"source", "op", "instruction", "references": [...], ...}

Pictures are named relative to the file's own folder or as `ForeignPaths` finds them.
"""

import json
from collections.abc import Iterator
from typing import Any

from omnifarm.concept.datasets.concept_folder import ConceptFolder
from omnifarm.concept.datasets.held_out import HeldOutEdit
from omnifarm.concept.reading import check_pair
from omnifarm.concept.spec import ConceptImage, EditPair
from omnifarm.errors import ConceptError
from omnifarm.miniature.edits import OPERATIONS

LEARNED_STATES = ("accepted", "auto_pass")
"""States of a checked pair that is learned from; the others are left out."""


def training_edits(folder: ConceptFolder, *, class_noun: str) -> list[EditPair]:
    """Read the pairs that passed their check."""
    path = f"omnipbench_edit/train/{folder.name}/pairs.jsonl"
    consumer = "learning edits"
    found = []
    for where, values in _lines(folder, path, consumer=consumer, required=("source", "target")):
        checks = values.get("qc")
        if isinstance(checks, dict) and checks.get("status", "accepted") not in LEARNED_STATES:
            continue
        source, target = (_picture(folder, path, values[key], where, consumer) for key in ("source", "target"))
        if source is None or target is None:
            continue
        asked = folder.named(str(values.get("instruction") or ""))
        asked = asked or f"remove <{folder.name}>: {class_noun} from the photo"
        pair = EditPair(source=source, target=target, instruction=asked)
        check_pair(pair, where=where, problems=folder.problems)
        found.append(pair)
    return found


def held_out_edits(folder: ConceptFolder) -> list[HeldOutEdit]:
    """Read the edits that are scored."""
    path = f"omnipbench_edit/test/{folder.name}/edits.jsonl"
    consumer = "scoring edits"
    found = []
    for where, values in _lines(folder, path, consumer=consumer, required=("source", "op", "instruction")):
        if values["op"] not in OPERATIONS:
            folder.problems.error(
                where,
                f"op must be one of {', '.join(OPERATIONS)}, found {values['op']!r}",
                consumer=consumer,
                fix="mend it",
            )
            continue
        files = values.get("references")
        files = [file for file in files if isinstance(file, str)] if isinstance(files, list) else []
        references = [_picture(folder, path, file, where, consumer) for file in files]
        source = _picture(folder, path, values["source"], where, consumer)
        if source is not None:
            found.append(
                HeldOutEdit(
                    source=source,
                    instruction=folder.named(values["instruction"]),
                    operation=values["op"],
                    references=tuple(one for one in references if one is not None),
                )
            )
    return found


def _lines(
    folder: ConceptFolder, path: str, *, consumer: str, required: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) of each line that has the required texts; others become problems."""
    if path not in folder.paths:
        return
    try:
        lines = folder.reader.text(path).splitlines()
    except ConceptError as error:
        folder.complain(path, error, consumer)
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        missing = (
            required
            if not isinstance(values, dict)
            else [key for key in required if not isinstance(values.get(key), str)]
        )
        if missing:
            folder.problems.error(
                where,
                f"must be an object with {' and '.join(required)}, found none of {', '.join(missing)}",
                consumer=consumer,
                fix="mend or delete the line",
            )
            continue
        yield where, values


def _picture(folder: ConceptFolder, path: str, file: str, where: str, consumer: str) -> ConceptImage | None:
    beside = f"{path.rpartition('/')[0]}/{file}"
    if beside in folder.paths:
        return folder.reader.image(beside, problems=folder.problems, consumer=consumer)
    return folder.picture(file, where, folder.foreign, consumer)
