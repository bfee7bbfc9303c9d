"""Benchmark runs that lie in a store, for the studio: which there are, and what one of them measured.

A run is put there by `omnifarm bench run` (or `jobs/run_benchmark.py`) with this store; nothing is measured here.
"""

import json
from collections.abc import Mapping
from typing import Any

from omnifarm.bench.plan import PREFIX, is_run_name
from omnifarm.bench.report.build import SCHEMA_VERSION
from omnifarm.bench.report.markdown import SECTIONS, columns_of, conditions, rows_of
from omnifarm.errors import NotFoundError
from omnifarm.store.base import Store
from serve.errors import MissingError

_REPORT = "/report.json"
_CELL = ("value", "low", "high", "n", "failures", "reason")


def list_reports(store: Store) -> list[dict[str, Any]]:
    """Return name, date, data and size of every finished run, newest first.

    Raises:
        StoreError: The store does not answer.
    """
    keys = [key for key in store.list(f"{PREFIX}/") if key.endswith(_REPORT)]
    found = []
    for run in (key.removeprefix(f"{PREFIX}/").removesuffix(_REPORT) for key in keys):
        report = _read(store, run)
        if report is not None:
            found.append(
                {
                    "run": run,
                    "date": report["about"]["date"],
                    "data": report["plan"]["data"],
                    "num_concepts": report["num_concepts"],
                    "num_items": report["num_items"],
                }
            )
    return sorted(found, key=lambda one: (one["date"], one["run"]), reverse=True)


def report_tables(store: Store, run: str) -> dict[str, Any]:
    """Return what a page shows of a run: its conditions, its measured tables, and what was not run and why.

    Raises:
        MissingError: There is no such report.
        StoreError: The store does not answer.
    """
    report = _read(store, run)
    if report is None:
        raise _missing(run)
    titles = {column["key"]: column["title"] for column in report["columns"]}
    not_run: dict[str, list[str]] = {}
    for key, reason in report["reasons"].items():
        not_run.setdefault(reason, []).append(titles[key])
    return {
        "run": report["run"],
        "conditions": conditions(report),
        "sections": [
            {"title": title, **table} for name, title in SECTIONS if (table := _table(report, section=name)) is not None
        ],
        "notes": [f"{row['title']}: {row['note']}" for row in report["rows"] if row["note"]],
        "not_run": [f"{', '.join(names)}: {reason}" for reason, names in not_run.items()],
    }


def report_page(store: Store, run: str) -> bytes:
    """Return the whole report as the one HTML file it was written as.

    Raises:
        MissingError: There is no such report.
        StoreError: The store does not answer.
    """
    if not is_run_name(run):
        raise _missing(run)
    try:
        return store.get(f"{PREFIX}/{run}/report.html").data
    except NotFoundError:
        raise _missing(run) from None


def _read(store: Store, run: str) -> dict[str, Any] | None:
    """Return a report of this version; one of another version cannot be shown."""
    if not is_run_name(run):
        return None
    try:
        report: dict[str, Any] = json.loads(store.get(f"{PREFIX}/{run}{_REPORT}").data)
    except NotFoundError:
        return None
    return report if report.get("schema_version") == SCHEMA_VERSION else None


def _table(report: Mapping[str, Any], *, section: str) -> dict[str, Any] | None:
    """Return the columns of a section in which anything was measured, and the rows that say anything in them."""
    columns = [
        column
        for column in columns_of(report, section)
        if any(cells.get(column["key"], {}).get("value") is not None for cells in report["cells"].values())
    ]
    if not columns:
        return None
    ours = {row["key"] for row in report["rows"] if row["section"] == "ours"}
    rows = [
        {
            "title": title,
            "is_ours": key in ours,
            "cells": [
                {name: cells[column["key"]][name] for name in _CELL} if column["key"] in cells else None
                for column in columns
            ],
        }
        for key, title, cells in rows_of(report, columns)
    ]
    shown = ("title", "about", "is_higher_better")
    return {"columns": [{name: column[name] for name in shown} for column in columns], "rows": rows}


def _missing(run: str) -> MissingError:
    return MissingError(f"expected a finished benchmark run, found none named {run[:80]!r}", field="run")
