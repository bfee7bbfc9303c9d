"""A table for every ablation of the paper that a run holds; the figure of the same key stands below it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnifarm.bench.report.looks import Looks, looks_table
from omnifarm.bench.report.markdown import cell_text

_WAYS = {"without_replay": "no replay", "ours": "one call (unified)", "three_stage": "three calls"}
_SWEPT = {
    "tokens": ("rec", "vqa_bleu", "qa_bleu", "parg_score", "sema_c", "qual_i", "world_identity", "world_edit"),
    "exemplars": ("parg_score", "replay_accuracy", "world_parg", "world_replay"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class AblationTable:
    """One of them."""

    key: str
    """Key in `markdown.TITLES`; its figure has the same."""
    lines: Sequence[Sequence[str]]
    """Head first."""
    note: str = ""
    """What a reader has to know."""


def ablation_tables(
    report: Mapping[str, Any], *, soft_tokens: Mapping[str, Mapping[str, NDArray[np.float32]]], looks: Looks
) -> list[AblationTable]:
    """Return the tables there is data for.

    Args:
        report: Contents of report.json so far: rows, columns, cells, timings, published.
        soft_tokens: Row to concept to its table (C, D).
        looks: Row to concept to where its identifier looks.
    """
    titles = {row["key"]: row["title"] for row in report["rows"]}
    tables = [AblationTable(key=key, lines=_swept(report, key)) for key in _SWEPT]
    tables.append(AblationTable(key="latency", lines=_ways(report), note=_at_once(report)))
    tables.append(
        AblationTable(
            key="soft_tokens",
            lines=_spread(soft_tokens, titles),
            note="Silhouettes, -1 to 1: above 0, vectors of one kind lie closer to each other than to the others.",
        )
    )
    if looks:
        tables.append(
            AblationTable(
                key="attention",
                lines=looks_table(looks, titles),
                note='"Is <sks> in the photo?" about one held-out photograph a concept; mean over heads and layers.',
            )
        )
    return [table for table in tables if len(table.lines) > 1]


def _swept(report: Mapping[str, Any], section: str) -> list[list[str]]:
    rows = [row for row in report["rows"] if row["section"] == section]
    cells = report["cells"]
    columns = [
        column
        for column in report["columns"]
        if column["key"] in _SWEPT[section]
        and any(cells[row["key"]][column["key"]]["value"] is not None for row in rows)
    ]
    if len(rows) < 2 or not columns:
        return []
    head = ["row", *(column["title"] for column in columns)]
    return [
        head,
        *([row["title"], *(cell_text(cells[row["key"]][column["key"]]) for column in columns)] for row in rows),
    ]


def _ways(report: Mapping[str, Any]) -> list[list[str]]:
    rows = {row["key"] for row in report["rows"]}
    if "three_stage" not in rows:
        return []
    lines = [["way", "calls", "seconds", "PARG Score", "fact drawn", "published: seconds", "published: PARG Score"]]
    published = report["published"]["table_3"]
    for key, way in _WAYS.items():
        if key not in rows:
            continue
        seconds, calls, score = published[way]
        measured = report["timings"][key]["replay_s"]
        lines.append(
            [
                way,
                str(calls),
                "0" if calls == 0 else "-" if measured is None else f"{measured:.3f}",
                *(cell_text(report["cells"][key][column]) for column in ("parg_score", "world_parg")),
                f"{seconds:g}",
                f"{score:.3f}",
            ]
        )
    return lines


def _at_once(report: Mapping[str, Any]) -> str:
    most = max((report["timings"][row["key"]]["at_once"] for row in report["rows"]), default=1)
    if most == 1:
        return "Every request was timed by itself."
    return (
        f"Up to {most} requests were under way at once, so these seconds are not those of one request; "
        "--variants replay --at-once 1 times each by itself."
    )


def _spread(tables: Mapping[str, Mapping[str, NDArray[np.float32]]], titles: Mapping[str, str]) -> list[list[str]]:
    from sklearn.metrics import silhouette_score

    lines = [["row", "vectors", "by side (understanding, generation)", "by concept"]]
    for row, found in tables.items():
        vectors = np.concatenate([table[1:] for table in found.values()]).astype(np.float64)
        halves = [(len(table) - 1) // 2 for table in found.values()]
        sides = np.concatenate(
            [[0] * half + [1] * (len(t) - 1 - half) for half, t in zip(halves, found.values(), strict=True)]
        )
        owners = np.concatenate([[place] * (len(table) - 1) for place, table in enumerate(found.values())])
        scores = [
            f"{silhouette_score(vectors, labels, metric='cosine'):.3f}" if len(set(labels)) > 1 else "-"
            for labels in (sides, owners)
        ]
        lines.append([titles.get(row, row), str(len(vectors)), *scores])
    return lines
