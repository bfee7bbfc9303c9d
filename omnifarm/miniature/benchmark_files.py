"""Writes drawn concepts to disk: as plain concept folders, or in the layout of UnifyBench and our edit split.

A plain folder holds `concept.yaml`, `images/`, `negatives/`, `edits/` (all learned from) and `test/` with
`trials.json` (never learned from). Both layouts hold the same pictures.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import NAME, BenchmarkConcept, recognition_cases
from omnifarm.miniature.render import render
from omnifarm.miniature.scene import Scene
from omnifarm.miniature.text import recognition_turn

_GENERATION_TYPE = {"person": "live_subject", "pet": "live_subject", "object": "object"}


def write_plain(root: Path, concepts: Sequence[BenchmarkConcept]) -> None:
    """Write one plain folder a concept under `root`.

    Raises:
        ConfigError: `root` is not empty.
    """
    _claim(root)
    for concept in concepts:
        _write_plain_concept(root / concept.name, concept)


def write_unifybench(root: Path, concepts: Sequence[BenchmarkConcept]) -> None:
    """Write a data root as UnifyBench lays it out, with the edit split of OmniPBench beside it.

    Raises:
        ConfigError: `root` is not empty.
    """
    _claim(root)
    black = root / "black_512x512.png"
    Image.fromarray(np.zeros((512, 512, 3), np.uint8)).save(black)
    _json(root / "concepts_list.json", [concept.name for concept in concepts])
    _json(root / "template.json", {"recognition": [recognition_turn(NAME, present=True).question]})
    lists = {concept.name: [f"{i}.png" for i in range(len(concept.train))] for concept in concepts}
    _json(root / "concept/train/train_images.json", lists)
    easy = [scene for concept in concepts for scene in concept.easy_negatives]
    for index, scene in enumerate(_without(easy, concepts)):
        _save(root / f"random_images/{index}.png", scene)
    for concept in concepts:
        _write_train(root, concept)
        _write_test(root, concept)
        _write_edits(root, concept)


def trials(concept: BenchmarkConcept) -> dict[str, Any]:
    """Return what the demo tries on a concept; pictures are named relative to its plain folder."""
    named = _Namer(concept.name)
    questions: list[dict[str, str | None]] = [
        {"kind": "recognition", "question": named(turn.question), "answer": turn.answer, "image": image}
        for (_, turn), image in zip(recognition_cases(concept), _recognition_files(concept), strict=True)
    ]
    questions += [
        {
            "kind": "vqa",
            "question": named(asked.turn.question),
            "answer": named(asked.turn.answer),
            "image": f"test/{asked.photo}.png",
        }
        for asked in concept.test_vqa
    ]
    questions += [
        {"kind": "fact", "question": named(asked.turn.question), "answer": named(asked.turn.answer), "image": None}
        for asked in concept.test_qa
    ]
    drawings = [{"prompt": named(concept.caption_elsewhere), "replay": "off"}]
    drawings.append({"prompt": named(concept.replays[0].request), "replay": "off"})
    drawings += [{"prompt": named(one.request), "replay": "unified"} for one in concept.replays[:3]]
    edits = [
        {
            "operation": case.edit.operation,
            "instruction": named(case.edit.instruction),
            "source": f"test/edit{i}_source.png",
            "target": f"test/edit{i}_target.png",
        }
        for i, case in enumerate(concept.test_edits)
    ]
    return {"schema_version": 1, "questions": questions, "drawings": drawings, "edits": edits}


def _write_plain_concept(folder: Path, concept: BenchmarkConcept) -> None:
    named = _Namer(concept.name)
    for kind, scenes in (
        ("images", concept.train),
        ("negatives", concept.hard_negatives),
        ("negatives/easy", concept.easy_negatives),
        ("test", concept.test),
    ):
        for index, scene in enumerate(scenes):
            _save(folder / kind / f"{index}.png", scene)
    for index, scene in enumerate(concept.strangers):
        _save(folder / f"test/stranger{index}.png", scene)
    for index, case in enumerate(concept.train_edits):
        _save(folder / f"edits/{index}_source.png", case.source)
        _save(folder / f"edits/{index}_target.png", case.edit.target)
    for index, case in enumerate(concept.test_edits):
        _save(folder / f"test/edit{index}_source.png", case.source)
        _save(folder / f"test/edit{index}_target.png", case.edit.target)
    qa: list[dict[str, str]] = []
    for asked in concept.train_qa:
        entry = {"question": named(asked.turn.question), "answer": named(asked.turn.answer)}
        qa.append(entry if asked.photo is None else {**entry, "image": f"images/{asked.photo}.png"})
    document = {
        "class": concept.identity.noun,
        "name": concept.name,
        "group": concept.identity.group,
        "info": named(concept.info),
        "extra_info": [named(fact) for fact in concept.extra_info],
        "captions": {f"images/{i}.png": named(text) for i, text in enumerate(concept.captions)},
        "qa": qa,
        "edits": [
            {
                "source": f"edits/{i}_source.png",
                "target": f"edits/{i}_target.png",
                "instruction": named(case.edit.instruction),
            }
            for i, case in enumerate(concept.train_edits)
        ],
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    (folder / "concept.yaml").write_text(text, encoding="utf-8")
    _json(folder / "trials.json", trials(concept))


def _write_train(root: Path, concept: BenchmarkConcept) -> None:
    named = _Namer(concept.name)
    folder = root / "concept/train" / concept.name
    for index, scene in enumerate(concept.train):
        _save(folder / f"{index}.png", scene)
    for index, scene in enumerate(concept.hard_negatives):
        _save(folder / f"negative_example/{index}.png", scene)
    scores = [
        {"image": f"{i}.png", "image_path": f"negative_example/{i}.png", "clip_score": 1.0}
        for i in range(len(concept.hard_negatives))
    ]
    _json(folder / "negative_example/score.json", scores)
    group = concept.identity.group
    info = {
        "class": concept.identity.noun,
        "info": named(concept.info),
        "extra_info": [named(fact) for fact in concept.extra_info],
        "conversation_type": "human" if group == "person" else group,
        "generation_type": _GENERATION_TYPE[group],
    }
    _json(folder / "info.json", info)
    conversations: dict[str, list[dict[str, str]]] = {}
    for asked in concept.train_qa:
        key = "black_512x512.png" if asked.photo is None else f"concept/train/{concept.name}/{asked.photo}.png"
        entry = {"query": named(asked.turn.question), "answer": named(asked.turn.answer)}
        conversations.setdefault(key, []).append(entry)
    _json(folder / "conversations.json", conversations)
    _json(folder / "captions.json", {f"{i}.png": named(text) for i, text in enumerate(concept.captions)})
    for file, present, images in (
        ("positive_recognitions.json", True, [f"concept/train/{concept.name}/{i}.png" for i in range(len(concept.train))]),
        ("random_recognitions.json", False, [f"concept/train/{concept.name}/negative_example/{i}.png" for i in range(len(concept.hard_negatives))]),
    ):  # fmt: skip
        turn = recognition_turn(NAME, present=present)
        _json(folder / file, {image: [{"query": named(turn.question), "answer": turn.answer}] for image in images})


def _write_test(root: Path, concept: BenchmarkConcept) -> None:
    named = _Namer(concept.name)
    folder = root / "concept/test" / concept.name
    inside = f"concept/test/{concept.name}"
    for index, scene in enumerate(concept.test):
        _save(folder / f"{index}.png", scene)
    for index, scene in enumerate(concept.strangers):
        _save(folder / f"strangers/{index}.png", scene)
    items: list[dict[str, Any]] = []
    for number, (_, turn) in enumerate(recognition_cases(concept)):
        here = number < len(concept.test)
        image = f"{inside}/{number}.png" if here else f"{inside}/strangers/{number - len(concept.test)}.png"
        items.append(_item("rec", image, named(turn.question), turn.answer))
    vqa: dict[str, list[dict[str, str]]] = {}
    for asked in concept.test_vqa:
        question, answer = named(asked.turn.question), named(asked.turn.answer)
        vqa.setdefault(f"{asked.photo}.png", []).append({"query": question, "answer": answer})
        items.append(_item("vqa", f"{inside}/{asked.photo}.png", question, answer))
    text_only = []
    for asked in concept.test_qa:
        question, answer = named(asked.turn.question), named(asked.turn.answer)
        text_only.append({"query": question, "answer": answer})
        items.append(_item("text_only", "black_512x512.png", question, answer))
    _json(folder / "vqa.json", vqa)
    _json(folder / "text_only.json", text_only)
    _json(
        folder / "t2i_conditions.json",
        [f"A photo of <{concept.name}>.", *(named(one.request) for one in concept.replays)],
    )
    references = [
        {"prompt": named(one.request), "fact": one.kind, "answer": one.answer, "explicit": named(one.prompt)}
        for one in concept.replays
    ]
    _json(folder / "t2i_references.json", references)
    _json(root / f"test_data/{concept.name}.json", items)


def _write_edits(root: Path, concept: BenchmarkConcept) -> None:
    named = _Namer(concept.name)
    folder = root / "omnipbench_edit/train" / concept.name
    lines: list[dict[str, Any]] = []
    for index, case in enumerate(concept.train_edits):
        _save(folder / f"{index}_source.png", case.source)
        _save(folder / f"{index}_target.png", case.edit.target)
        lines.append(
            {
                "id": f"{concept.name}-{index}",
                "concept": concept.name,
                "class": concept.identity.noun,
                "source": f"{index}_source.png",
                "target": f"{index}_target.png",
                "instruction": named(case.edit.instruction),
                "inpainter": "drawn",
                "qc": {"status": "accepted"},
            }
        )
    _jsonl(folder / "pairs.jsonl", lines)
    folder = root / "omnipbench_edit/test" / concept.name
    lines = []
    for index, case in enumerate(concept.test_edits):
        _save(folder / f"{index}_source.png", case.source)
        _save(folder / f"{index}_target.png", case.edit.target)
        lines.append(
            {
                "id": f"{concept.name}-{index}",
                "concept": concept.name,
                "source": f"{index}_source.png",
                "target": f"{index}_target.png",
                "op": case.edit.operation,
                "instruction": named(case.edit.instruction),
                "instruction_id": f"{case.edit.operation}-{index}",
                "references": [f"concept/test/{concept.name}/{i}.png" for i in range(len(concept.test))],
            }
        )
    _jsonl(folder / "edits.jsonl", lines)


def _recognition_files(concept: BenchmarkConcept) -> list[str]:
    present = [f"test/{i}.png" for i in range(len(concept.test))]
    return [*present, *(f"test/stranger{i}.png" for i in range(len(concept.strangers)))]


def _without(scenes: Sequence[Scene], concepts: Sequence[BenchmarkConcept]) -> list[Scene]:
    """Drop pictures that show any of the concepts: they are negatives of all."""
    known = {concept.identity for concept in concepts}
    return [scene for scene in scenes if not known & {placed.identity for placed in scene.subjects}]


class _Namer:
    """Puts a concept's identifier where texts say `<sks>`."""

    def __init__(self, name: str) -> None:
        self._identifier = f"<{name}>"

    def __call__(self, text: str) -> str:
        return text.replace(NAME, self._identifier)


def _item(kind: str, image: str, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"type": kind, "image": image, "conversations": turns}


def _claim(root: Path) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigError(f"expected {root} to be empty or absent, found files in it; choose another folder")
    root.mkdir(parents=True, exist_ok=True)


def _save(path: Path, scene: Scene) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(scene)).save(path)


def _json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _jsonl(path: Path, lines: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
