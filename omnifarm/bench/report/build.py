"""From values to the report's contents, as JSON values; the page, the text and the table file are made from these."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from omnifarm.bench.metrics.aggregate import Cell, ConceptValue, cell_of
from omnifarm.bench.metrics.columns import COLUMNS
from omnifarm.bench.plan import RunPlan
from omnifarm.bench.published import SOURCE, TABLE_1, TABLE_2, TABLE_3
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.report.ablations import ablation_tables
from omnifarm.bench.report.figures import draw_figures
from omnifarm.bench.report.grids import draw_grids
from omnifarm.bench.report.looks import Looks
from omnifarm.bench.report.markdown import as_markdown
from omnifarm.bench.report.page import as_page
from omnifarm.bench.rows import ABSENT, Row
from omnifarm.bench.tasks import Benchmark
from omnifarm.store.base import Store

SCHEMA_VERSION = 2
"""Version of the report's fields."""

_MAX_LISTED = 40
_REPLAY_COLUMNS = ("replay_accuracy", "world_replay")
_CLIP_COLUMNS = ("clip_i", "clip_t", "parg_clip_i")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """Everything a report is made from."""

    plan: RunPlan
    """What was done."""
    benchmark: Benchmark
    """What was asked."""
    store: Store
    """Where replies lie, and the report goes."""
    values: Sequence[ConceptValue]
    """What was measured."""
    reasons: Mapping[str, str]
    """Column to why it was not run."""
    judge: str
    """Id of the judge, empty without one."""
    judge_report: Mapping[str, Any]
    """What judging took."""
    protocol: str
    """strict or compat."""
    soft_tokens: Mapping[str, Mapping[str, np.ndarray[Any, np.dtype[np.float32]]]]
    """Row to concept to its table (C, D)."""
    looks: Looks
    """Row to concept to where its identifier looks."""
    train_s: Mapping[str, float]
    """Row to seconds of training."""
    about: Mapping[str, Any]
    """Hardware, commit, date and the like."""


def write_report(evidence: Evidence) -> dict[str, Any]:
    """Write report.json, .html, .md and .parquet into the run's folder; safe to repeat.

    Returns:
        The contents of report.json, with `folder`.
    """
    report = contents(evidence)
    folder = evidence.plan.folder
    figures = draw_figures(report, soft_tokens=evidence.soft_tokens, looks=evidence.looks)
    grids = draw_grids(evidence.plan, evidence.benchmark, evidence.store)
    put = evidence.store.put
    put(f"{folder}/report.parquet", parquet(evidence.values, protocol=evidence.protocol, judge=evidence.judge))
    put(f"{folder}/report.md", as_markdown(report).encode())
    put(f"{folder}/report.html", as_page(report, figures=figures, grids=grids).encode())
    # Last: who waits for the report waits for this.
    put(f"{folder}/report.json", json.dumps(report, indent=1, ensure_ascii=False).encode())
    return {**report, "folder": folder}


def contents(evidence: Evidence) -> dict[str, Any]:
    """Return the report as JSON values."""
    rows = evidence.plan.chosen()
    cells = {row.key: _cells(row, evidence) for row in rows}
    cells["real_images"] = {
        key: _cell("real_images", key, evidence).to_json()
        for key in ("clip_i", "dino", "efficientnet_i")
        if key not in evidence.reasons
    }
    failures, traces, asking = _replies(rows, evidence)
    report = {
        "schema_version": SCHEMA_VERSION,
        "run": evidence.plan.run,
        "plan": evidence.plan.to_json(),
        "about": dict(evidence.about),
        "protocol": evidence.protocol,
        "judge": evidence.judge,
        "judge_report": dict(evidence.judge_report),
        "num_concepts": len(evidence.benchmark.concepts),
        "num_items": len(evidence.benchmark.items),
        "notes": list(evidence.benchmark.notes),
        "rows": [
            {"key": row.key, "title": row.title, "section": row.section, "kind": row.kind, "note": row.note}
            for row in rows
        ],
        "columns": [asdict(column) for column in COLUMNS.values()],
        "reasons": dict(evidence.reasons),
        "cells": cells,
        "concepts": _per_concept(evidence),
        "published": {
            "source": SOURCE,
            "table_1": {name: dict(row) for name, row in TABLE_1.items()},
            "table_2": {name: dict(row) for name, row in TABLE_2.items()},
            "table_3": {name: list(row) for name, row in TABLE_3.items()},
        },
        "absent": dict(ABSENT),
        "timings": {row.key: {"train_s": evidence.train_s.get(row.key), **asking[row.key]} for row in rows},
        "failures": failures,
        "traces": traces,
    }
    tables = ablation_tables(report, soft_tokens=evidence.soft_tokens, looks=evidence.looks)
    return {**report, "ablations": [asdict(table) for table in tables]}


def parquet(values: Sequence[ConceptValue], *, protocol: str, judge: str) -> bytes:
    """Return one line per row, seed, concept and measure as a parquet file; equal values give equal bytes."""
    columns = {
        name: [getattr(value, name) for value in values]
        for name in ("row", "seed", "concept", "metric", "n", "failures")
    }
    table = pa.table(
        {
            **columns,
            "value": pa.array([value.value for value in values], pa.float64()),
            "protocol": [protocol] * len(values),
            "judge": [judge] * len(values),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _cells(row: Row, evidence: Evidence) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for key, column in COLUMNS.items():
        if column.task not in row.tasks or (key in _REPLAY_COLUMNS and row.replay == "off"):
            cells[key] = Cell(reason="-").to_json()
        elif key in evidence.reasons:
            cells[key] = Cell(reason=f"not run: {evidence.reasons[key]}").to_json()
        else:
            cells[key] = _cell(row.key, key, evidence).to_json()
    return cells


def _cell(row: str, key: str, evidence: Evidence) -> Cell:
    values = [value for value in evidence.values if value.row == row and value.metric == key]
    # The public CLIP script averages over images, not over concepts.
    return cell_of(values, weighted=evidence.protocol == "compat" and key in _CLIP_COLUMNS)


def _per_concept(evidence: Evidence) -> dict[str, dict[str, dict[str, float]]]:
    """Return row to concept to measure, the mean over seeds."""
    gathered: dict[tuple[str, str, str], list[float]] = {}
    for value in evidence.values:
        if value.value is not None:
            gathered.setdefault((value.row, value.concept, value.metric), []).append(value.value)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (row, concept, metric), numbers in gathered.items():
        found.setdefault(row, {}).setdefault(concept, {})[metric] = round(float(np.mean(numbers)), 6)
    return found


def _replies(
    rows: Sequence[Row], evidence: Evidence
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return failures, replay traces (the first of each row and concept) and seconds per kind of reply."""
    failures: list[dict[str, Any]] = []
    traces: list[dict[str, Any]] = []
    asking: dict[str, dict[str, Any]] = {}
    for row in rows:
        seconds: dict[str, list[float]] = {}
        replays: list[float] = []
        missing, at_once, spent_s = 0, 1, 0.0
        for seed in evidence.plan.seeds:
            replies = ReplyFile(evidence.store, prefix=evidence.plan.replies_key(row, seed=seed))
            for concept in evidence.benchmark.concepts:
                items = evidence.benchmark.items_of(concept.name, *row.tasks)
                found = list(replies.read_all(items))
                missing += len(items) - len(found)
                is_first = True
                for item, filed in found:
                    where = {"row": row.key, "seed": seed, "concept": concept.name, "item": item.id, "asked": item.text}
                    if filed.failure:
                        failures.append({**where, "failure": filed.failure})
                        continue
                    at_once = max(at_once, filed.at_once)
                    seconds.setdefault(item.task, []).append(filed.timings["total_s"])
                    spent_s += filed.timings["spent_s"]
                    if filed.trace.get("calls"):
                        replays.append(filed.trace["duration_s"])
                        if is_first and item.task == "parg":
                            traces.append({**where, **filed.trace})
                            is_first = False
        asking[row.key] = {
            "seconds_each": {task: round(float(np.mean(found)), 3) for task, found in seconds.items()},
            "ask_s": round(spent_s, 1),
            "at_once": at_once,
            "replay_s": round(float(np.mean(replays)), 4) if replays else None,
            "not_asked": missing,
        }
    return failures[:_MAX_LISTED], traces[:_MAX_LISTED], asking
