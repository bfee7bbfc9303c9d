"""A report as one self-contained HTML page: no script, no request, every picture inside."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from omnifarm.bench.report.grids import Strip
from omnifarm.bench.report.markdown import SECTIONS, TITLES, columns_of, conditions, rows_of, timing_rows

_STYLE = """
:root { color-scheme: light; --ink: #1c2126; --soft: #5d6670; --line: #dfe3e8; --ours: #eaf2fb; --pub: #f7f3ea; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 1320px; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem }
p, li, dl { max-width: 75ch } .soft { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .8rem 0 } dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .82rem; white-space: nowrap }
th, td { border-bottom: 1px solid var(--line); padding: .28rem .36rem; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff }
thead th { font-weight: 600; vertical-align: bottom; white-space: normal } tr.ours td { background: var(--ours) }
td small { display: block; font-weight: 400; color: var(--soft); font-size: .72rem } td.best { font-weight: 700 } td.thin { color: #a33 }
table.published td, table.published th { background: var(--pub) } table.published caption { background: var(--pub) }
caption { text-align: left; font-weight: 600; padding: .3rem .55rem }
img.figure { max-width: 100% } .strip { margin: .5rem 0 1rem } .tiles { display: flex; flex-wrap: wrap; gap: .5rem }
figure { margin: 0; width: 112px } figure img { width: 112px; border-radius: 4px } figcaption { font-size: .7rem; color: var(--soft); line-height: 1.25 }
code { font-size: .9em } details { margin: .3rem 0 }
"""

_OVERVIEW = "Measured, with 95 % intervals. Dark: ours; light: ablations; grey: baselines."


def as_page(report: Mapping[str, Any], *, figures: Mapping[str, bytes], grids: Sequence[Strip]) -> str:
    """Return the page.

    Args:
        report: Contents of report.json.
        figures: Name to PNG bytes.
        grids: Strips of pictures.
    """
    parts = [
        f"<h1>OmniPBench: {escape(report['run'])}</h1>",
        '<p class="soft">Measured values are means over concepts; the small line below is the 95 % interval (bootstrap '
        "over concepts, seeds averaged first), then the number of items. A dash: the row does not do this.</p>",
        _conditions(report),
    ]
    for section, title in SECTIONS:
        columns = columns_of(report, section)
        if columns:
            parts += [f"<h2>{escape(title)}</h2>", _measured(report, columns)]
    parts += ["<h2>Published</h2>", _published(report)]
    if "overview" in figures:
        parts.append(f"<h2>{_OVERVIEW}</h2>{_figure('overview', figures['overview'], _OVERVIEW)}")
    parts += [_ablation(table, figures) for table in report["ablations"]]
    parts += ["<h2>Pictures</h2>", *map(_strip, grids)] if grids else []
    parts += [_per_concept(report), _traces(report), _timings(report), _notes(report), _failures(report)]
    title = escape(report["run"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>OmniPBench {title}</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _conditions(report: Mapping[str, Any]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in conditions(report)) + "</dl>"


def _measured(report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> str:
    rows = rows_of(report, columns)
    best = {}
    for column in columns:
        found = [
            cells[column["key"]]["value"]
            for key, _, cells in rows
            if key != "real_images" and column["key"] in cells and cells[column["key"]]["value"] is not None
        ]
        if len(set(found)) > 1 and column["is_higher_better"] is not None:
            best[column["key"]] = max(found) if column["is_higher_better"] else min(found)
    head = "".join(f'<th title="{escape(column["about"])}">{escape(column["title"])}</th>' for column in columns)
    sections = {row["key"]: row["section"] for row in report["rows"]}
    lines = []
    for key, title, cells in rows:
        tds = "".join(_cell(cells.get(column["key"]), best.get(column["key"])) for column in columns)
        mark = ' class="ours"' if sections.get(key) == "ours" else ""
        lines.append(f"<tr{mark}><td>{escape(title)}</td>{tds}</tr>")
    return f'<div class="wide"><table class="measured"><caption>measured here</caption><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(cell: Mapping[str, Any] | None, best: float | None) -> str:
    if cell is None or cell["value"] is None:
        reason = "-" if cell is None else cell["reason"]
        is_missing = reason.startswith("not run")
        return f'<td title="{escape(reason)}">{"not run" if is_missing else escape(reason)}</td>'
    lines = [] if cell["low"] is None else [f"{cell['low']:.2f} to {cell['high']:.2f}"]
    lines += [f"n {cell['n']}" + (f", {cell['failures']} failed" if cell["failures"] else "")]
    small = "<br>".join(lines)
    is_thin = cell["failures"] > 0.1 * (cell["n"] + cell["failures"])
    kinds = (["best"] if best is not None and abs(cell["value"] - best) < 5e-4 else []) + (["thin"] if is_thin else [])
    mark = f' class="{" ".join(kinds)}"' if kinds else ""
    incomplete = " incomplete" if is_thin else ""
    return f"<td{mark}>{cell['value']:.3f}{incomplete}<small>{small}</small></td>"


def _published(report: Mapping[str, Any]) -> str:
    columns = [column for column in report["columns"] if column["section"] == "paper"]
    head = "".join(f"<th>{escape(column['title'])}</th>" for column in columns)
    tables = []
    for name in ("table_1", "table_2"):
        lines = "".join(
            f"<tr><td>{escape(row)}</td>"
            + "".join(f"<td>{values[c['key']]:.3f}</td>" if c["key"] in values else "<td>-</td>" for c in columns)
            + "</tr>"
            for row, values in report["published"][name].items()
        )
        caption = f"{escape(report['published']['source'])}: {name.replace('_', ' ')}; not measured here"
        tables.append(
            f'<div class="wide"><table class="published"><caption>{caption}</caption>'
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
        )
    return (
        "<p>Other data, weights and judges: these numbers stand here for orientation and are compared with nothing "
        f"above.</p>{''.join(tables)}"
    )


def _figure(name: str, png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="figure" id="figure-{name}" alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _ablation(table: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    """A heading, the table, and the figure of the same key below it."""
    key, title, (head, *lines) = table["key"], TITLES[table["key"]], table["lines"]
    note = f'<p class="soft">{escape(table["note"])}</p>' if table["note"] else ""
    figure = _figure(key, figures[key], title) if key in figures else ""
    return f"<h2>{escape(title)}</h2>{_plain_table(head, lines)}{note}{figure}"


def _plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table></div>'


def _strip(strip: Strip) -> str:
    tiles = "".join(
        f'<figure><img alt="{escape(tile.caption)}" src="data:image/jpeg;base64,{base64.b64encode(tile.jpeg).decode()}">'
        f"<figcaption>{escape(tile.caption)}</figcaption></figure>"
        for tile in strip.tiles
    )
    return f'<div class="strip"><div><b>{escape(strip.concept)}</b> {escape(strip.asked)}</div><div class="tiles">{tiles}</div></div>'


def _per_concept(report: Mapping[str, Any]) -> str:
    parts = []
    for row in report["rows"]:
        found = report["concepts"].get(row["key"], {})
        keys = [column for column in report["columns"] if any(column["key"] in values for values in found.values())]
        if not found or not keys:
            continue
        head = "".join(f"<th>{escape(column['title'])}</th>" for column in keys)
        lines = "".join(
            f"<tr><td>{escape(name)}</td>"
            + "".join(f"<td>{values[c['key']]:.3f}</td>" if c["key"] in values else "<td></td>" for c in keys)
            + "</tr>"
            for name, values in found.items()
        )
        parts.append(
            f"<details><summary>{escape(row['title'])}</summary><div class='wide'><table><thead><tr><th></th>{head}</tr>"
            f"</thead><tbody>{lines}</tbody></table></div></details>"
        )
    return f"<h2>Every concept</h2>{''.join(parts)}"


def _traces(report: Mapping[str, Any]) -> str:
    if not report["traces"]:
        return ""
    lines = "".join(
        "<tr>"
        + "".join(
            f"<td>{escape(str(one[key]))}</td>"
            for key in ("row", "concept", "asked", "question", "answer", "prompt", "status")
        )
        + "</tr>"
        for one in report["traces"]
    )
    head = "".join(
        f"<th>{name}</th>" for name in ("row", "concept", "request", "question", "answer", "drawn", "status")
    )
    return f'<h2>Knowledge replay, as it happened</h2><div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _timings(report: Mapping[str, Any]) -> str:
    head, *lines = timing_rows(report)
    return f"<h2>Time</h2>{_plain_table(head, lines)}"


def _notes(report: Mapping[str, Any]) -> str:
    titles = {column["key"]: column["title"] for column in report["columns"]}
    reasons: dict[str, list[str]] = {}
    for key, reason in report["reasons"].items():
        reasons.setdefault(reason, []).append(titles[key])
    not_run = [f"<b>{escape(', '.join(keys))}</b>: {escape(reason)}" for reason, keys in reasons.items()]
    not_run += [f"<b>{escape(name)}</b>: {escape(why)}" for name, why in report["absent"].items()]
    rows = [f"<b>{escape(row['title'])}</b>: {escape(row['note'])}" for row in report["rows"] if row["note"]]
    about = [f"<b>{escape(c['title'])}</b>: {escape(c['about'])}" for c in report["columns"] if c["about"]]
    parts = (
        ("Not run", not_run),
        ("Rows", rows),
        ("Columns", about),
        ("Data", [escape(one) for one in report["notes"]]),
    )
    return "".join(
        f"<h2>{title}</h2><ul>{''.join(f'<li>{one}</li>' for one in found)}</ul>" for title, found in parts if found
    )


def _failures(report: Mapping[str, Any]) -> str:
    lines = [
        f"<li>{escape(one['row'])}, {escape(one['concept'])} {escape(one['item'])}: {escape(one['failure'])}</li>"
        for one in report["failures"]
    ]
    return f"<h2>Failures</h2><ul>{''.join(lines)}</ul>" if lines else ""
