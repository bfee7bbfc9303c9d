"""Figures of a report, drawn with matplotlib, as PNG bytes by name."""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnifarm.bench.report.looks import Looks, draw_looks

Tables = Mapping[str, Mapping[str, NDArray[np.float32]]]
"""Row to concept to its soft tokens (C, D)."""

_BARS = ("rec", "vqa_bleu", "qa_bleu", "parg_score", "sema_c", "qual_i", "avg", "world_identity", "world_edit")
_MAX_ROWS = 14


def draw_figures(report: Mapping[str, Any], *, soft_tokens: Tables, looks: Looks) -> dict[str, bytes]:
    """Return the figures there is data for: `overview`, and those of `markdown.TITLES`."""
    from matplotlib.figure import Figure

    titles = {row["key"]: row["title"] for row in report["rows"]}
    figures: dict[str, bytes] = {}
    for name, draw in (
        ("overview", lambda figure: _overview(figure, report)),
        ("tokens", lambda figure: _sweep(figure, report, "tokens", "soft tokens", ("rec", "vqa_bleu", "qa_bleu", "parg_score", "world_identity"))),
        ("exemplars", lambda figure: _sweep(figure, report, "exemplars", "worked examples", ("parg_score", "world_parg", "world_replay"))),
        ("latency", lambda figure: _latency(figure, report)),
        ("soft_tokens", lambda figure: _embedding(figure, soft_tokens, titles)),
        ("attention", lambda figure: draw_looks(figure, looks, titles)),
    ):  # fmt: skip
        figure = Figure(figsize=(9, 4.2), layout="constrained")
        drawer: Callable[[Figure], bool] = draw
        if drawer(figure):
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
            figures[name] = buffer.getvalue()
    return figures


def _overview(figure: Any, report: Mapping[str, Any]) -> bool:
    rows = [row for row in report["rows"] if row["section"] in ("ours", "ablation", "baseline")][:_MAX_ROWS]
    cells = report["cells"]
    shown = [key for key in _BARS if any(cells[row["key"]][key]["value"] is not None for row in rows)]
    if not rows or not shown:
        return False
    titles = {column["key"]: column["title"] for column in report["columns"]}
    axes = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    figure.set_size_inches(2.0 + 1.25 * len(shown), 1.0 + 0.32 * len(rows))
    places = np.arange(len(rows))[::-1]
    for axis, key in zip(axes, shown, strict=True):
        for place, row in zip(places, rows, strict=True):
            cell = cells[row["key"]][key]
            if cell["value"] is None:
                continue
            color = {"ours": "#1f5fa8", "ablation": "#6ea4d8"}.get(row["section"], "#b9bec5")
            axis.barh(place, cell["value"], color=color, height=0.7)
            if cell["low"] is not None:
                axis.plot([cell["low"], cell["high"]], [place, place], color="#222222", linewidth=1)
        axis.set_title(titles[key], fontsize=8)
        axis.set_xlim(0, 1)
        axis.tick_params(labelsize=7)
    axes[0].set_yticks(places, [row["title"] for row in rows])
    return True


def _sweep(figure: Any, report: Mapping[str, Any], section: str, label: str, keys: tuple[str, ...]) -> bool:
    rows = [row for row in report["rows"] if row["section"] == section]
    if len(rows) < 2:
        return False
    numbers = [int(row["key"].rpartition("_")[2]) for row in rows]
    titles = {column["key"]: column["title"] for column in report["columns"]}
    axis = figure.subplots()
    for key in keys:
        cells = [report["cells"][row["key"]][key] for row in rows]
        points = [(number, cell) for number, cell in zip(numbers, cells, strict=True) if cell["value"] is not None]
        if not points:
            continue
        x = [number for number, _ in points]
        (line,) = axis.plot(x, [cell["value"] for _, cell in points], marker="o", label=titles[key])
        if all(cell["low"] is not None for _, cell in points):
            low, high = [cell["low"] for _, cell in points], [cell["high"] for _, cell in points]
            axis.fill_between(x, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    axis.set_xlabel(label)
    axis.set_ylim(0, 1.02)
    axis.set_xticks(numbers)
    axis.legend(fontsize=8)
    return True


def _latency(figure: Any, report: Mapping[str, Any]) -> bool:
    measured = {}
    for key, way in (("ours", "one call (unified)"), ("three_stage", "three calls")):
        seconds = report["timings"].get(key, {}).get("replay_s")
        if seconds is None:
            return False
        measured[way] = seconds
    axes = figure.subplots(1, 2)
    published = {way: report["published"]["table_3"][way][0] for way in measured}
    for axis, title, values in (
        (axes[0], "measured here", measured),
        (axes[1], "published (7B, their GPU)", published),
    ):
        axis.bar(list(values), list(values.values()), color="#6ea4d8", width=0.5)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("seconds per replay")
        axis.tick_params(axis="x", labelsize=7)
    return True


def _embedding(figure: Any, tables: Tables, titles: Mapping[str, str]) -> bool:
    """Soft tokens of all concepts in two dimensions, t-SNE above PCA; understanding and generation apart."""
    tables = {row: found for row, found in tables.items() if len(found) >= 1}
    if not tables:
        return False
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    figure.set_size_inches(4.5 * len(tables), 8)
    axes = figure.subplots(2, len(tables), squeeze=False)
    for column, (row, found) in enumerate(tables.items()):
        rows = np.concatenate(list(found.values())).astype(np.float64)
        sides = np.concatenate([_sides(len(table)) for table in found.values()])
        perplexity = min(30.0, (len(rows) - 1) / 3)
        maps = (
            ("t-SNE", TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=0)),
            ("PCA", PCA(n_components=2)),
        )
        for place, (name, method) in enumerate(maps):
            flat = method.fit_transform(rows)
            axis = axes[place, column]
            for side, color in (("identifier", "#222222"), ("understanding", "#1f5fa8"), ("generation", "#d9822b")):
                axis.scatter(*flat[sides == side].T, s=9, color=color, label=side)
            axis.set_title(f"{titles.get(row, row)}: {name}", fontsize=9)
            axis.set_xticks([])
            axis.set_yticks([])
    axes[0, 0].legend(fontsize=7)
    return True


def _sides(count: int) -> NDArray[np.str_]:
    half = (count - 1) // 2
    return np.array(["identifier"] + ["understanding"] * half + ["generation"] * (count - 1 - half))
