"""A report as Markdown: measured tables, the published one apart, and everything a reader needs to judge them."""

from collections.abc import Mapping, Sequence
from typing import Any

TITLES: Mapping[str, str] = {
    "tokens": "Number of soft tokens (paper: Fig. 9)",
    "exemplars": "Worked examples in the replay prompt (paper: Fig. 6b)",
    "latency": "Ways of replay (paper: Table 3)",
    "soft_tokens": "Soft tokens of all concepts (paper: Fig. 6a)",
    "attention": "Where the identifier looks (paper: Fig. 8)",
}
"""Key of an ablation to its heading."""
SECTIONS = (
    ("paper", "Columns of the paper"),
    ("honest", "What keeps them honest"),
    ("stand-in", "Stand-ins: other encoders, other scales"),
    ("world", "Exact, on the drawn world"),
)
"""Groups of columns and their headings."""


def cell_text(cell: Mapping[str, Any]) -> str:
    """Return a cell as text: value, interval, and a mark where many items failed."""
    if cell["value"] is None:
        return "not run" if cell["reason"].startswith("not run") else cell["reason"] or "-"
    text = f"{cell['value']:.3f}"
    if cell["low"] is not None:
        text += f" [{cell['low']:.2f}, {cell['high']:.2f}]"
    failed = cell["failures"]
    return f"{text} ({failed} of {cell['n'] + failed} failed)" if failed else text


def columns_of(report: Mapping[str, Any], section: str) -> list[Mapping[str, Any]]:
    """Return the columns of a section that anything was measured in, or that could not be run; the paper's always."""
    keys = {key for cells in report["cells"].values() for key, cell in cells.items() if cell["value"] is not None}
    shown = [column for column in report["columns"] if column["section"] == section]
    return shown if section == "paper" else [column for column in shown if column["key"] in keys]


def rows_of(
    report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (key, title, cells) of the rows that say anything in these columns, ours first, real images last.

    Sweeps have tables of their own and stand here only when there is nothing else.
    """
    others = [row for row in report["rows"] if row["section"] not in ("tokens", "exemplars")]
    rows = [(row["key"], row["title"], report["cells"][row["key"]]) for row in others or report["rows"]]
    rows.append(("real_images", "real images", report["cells"]["real_images"]))
    wanted = [column["key"] for column in columns]
    return [row for row in rows if any(row[2].get(key, {"reason": "-"})["reason"] != "-" for key in wanted)]


def conditions(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a number of this report means: who, where, when, with what."""
    about, plan = report["about"], report["plan"]
    found = [
        ("data", f"{plan['data']}: {report['num_concepts']} concepts, {report['num_items']} items"),
        ("backbone", f"{about['backbone']} ({about['fingerprint'][:12]})"),
        ("protocol", report["protocol"]),
        ("judge", report["judge"] or "none"),
        ("seeds", ", ".join(map(str, plan["seeds"]))),
        ("steps per concept", str({**about["recipe"], **plan["recipe"]}["steps"])),
        ("hardware", about["hardware"]),
        ("commit", about["commit"]),
        ("date", about["date"]),
        ("benchmark", about["benchmark"][:16]),
    ]
    spent = {key: value for key, value in report["judge_report"].items() if key != "judge" and value}
    if spent:
        found.append(("judging", ", ".join(f"{key} {value}" for key, value in spent.items())))
    return found + ([("command", about["command"])] if about.get("command") else [])


def as_markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [f"# OmniPBench: {report['run']}", ""]
    lines += [f"- **{name}**: {value}" for name, value in conditions(report)]
    lines += [
        "",
        "Values are means over concepts with 95 % intervals (bootstrap over concepts, seeds averaged first). "
        '"-": the row does not do this. "not run": reasons below.',
    ]
    for section, title in SECTIONS:
        columns = columns_of(report, section)
        if columns:
            lines += ["", f"## {title} (measured)", "", *_measured(report, columns)]
    reasons: dict[str, list[str]] = {}
    titles = {column["key"]: column["title"] for column in report["columns"]}
    for key, reason in report["reasons"].items():
        reasons.setdefault(reason, []).append(titles[key])
    lines += ["", "## Not run", ""]
    lines += [f"- {', '.join(keys)}: {reason}" for reason, keys in reasons.items()]
    lines += [f"- {name}: {why}" for name, why in report["absent"].items()]
    notes = [f"- {row['title']}: {row['note']}" for row in report["rows"] if row["note"]]
    lines += ["", "## Rows", "", *notes]
    lines += ["", f"## Published ({report['published']['source']}; not measured here)", ""]
    paper = [column for column in report["columns"] if column["section"] == "paper"]
    for table in ("table_1", "table_2"):
        lines += _table(
            ["published", *(column["title"] for column in paper)],
            [
                [name, *(f"{values[column['key']]:.3f}" if column["key"] in values else "-" for column in paper)]
                for name, values in report["published"][table].items()
            ],
        )
        lines.append("")
    for table in report["ablations"]:
        lines += [f"## {TITLES[table['key']]}", "", *([table["note"], ""] if table["note"] else [])]
        names, *cells = table["lines"]
        lines += [*_table(names, cells), ""]
    head, *times = timing_rows(report)
    lines += ["## Time", "", *_table(head, times)]
    if report["notes"]:
        lines += ["", "## Data", "", *(f"- {note}" for note in report["notes"])]
    if report["failures"]:
        lines += ["", "## Failures", ""]
        lines += [f"- {one['row']} {one['concept']} {one['item']}: {one['failure']}" for one in report["failures"]]
    return "\n".join(lines) + "\n"


def _measured(report: Mapping[str, Any], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [title, *(cell_text(cells[column["key"]]) if column["key"] in cells else "-" for column in columns)]
        for _, title, cells in rows_of(report, columns)
    ]
    return _table(["measured", *(column["title"] for column in columns)], rows)


def timing_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Return head and lines of the table of times: training and asking, over all concepts and seeds."""
    rows = [["row", "training s", "asking s", "at once", "s until a reply", "s per replay", "items not asked"]]
    for row in report["rows"]:
        found = report["timings"][row["key"]]
        each = ", ".join(f"{task} {seconds:g}" for task, seconds in found["seconds_each"].items())
        train = "-" if found["train_s"] is None else f"{found['train_s']:.0f}"
        replay = "-" if found["replay_s"] is None else f"{found['replay_s']:.3f}"
        asked = [f"{found['ask_s']:.0f}", str(found["at_once"])]
        rows.append([row["title"], train, *asked, each, replay, str(found["not_asked"])])
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]
