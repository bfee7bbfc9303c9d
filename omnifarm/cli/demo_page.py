"""The demo's page: one self-contained HTML file made from the demo's summary.

Knows nothing of clusters or models. The summary is the plain dictionary that is also written as `summary.json`:

    backbone, hardware, commit, created      strings
    timings                                  {name: seconds}
    totals                                   {name: number or "n of m"}
    concepts                                 list of
        identifier, class_noun, info, extra_info (list), steps, train_s
        photos                               list of image paths
        losses                               {"text": [[step, loss], ...], "image": [...]}
        answers     list of {kind, question, image (path or None), answer, expected, correct (bool or None), seconds}
        drawings    list of {prompt, image (path), replay (None or {status, question, answer, prompt}), seconds}
        edits       list of {instruction, before, after, truth (path or None), seconds}

Image paths are relative to the folder the page is written to.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --soft: #6e6e73; --paper: #fbfbfd; --card: #fff; --line: #e3e3e8; --yes: #1a7f37; --no: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #f2f2f4; --soft: #a1a1a8; --paper: #131316; --card: #1c1c20; --line: #33333a; --yes: #57c26f; --no: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 80px; }
h1 { font-size: 2rem; line-height: 1.15; margin: 0 0 8px; letter-spacing: -.02em; }
h2 { font-size: 1.35rem; margin: 0; font-weight: 650; }
h3 { font-size: .8rem; text-transform: uppercase; letter-spacing: .06em; color: var(--soft); margin: 24px 0 8px; font-weight: 600; }
p { margin: 4px 0; max-width: 70ch; } .soft { color: var(--soft); } small { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 8px; margin: 20px 0 28px; }
nav a { display: flex; align-items: center; gap: 8px; padding: 4px 12px 4px 4px; border: 1px solid var(--line); border-radius: 999px; color: inherit; text-decoration: none; }
nav img { width: 32px; height: 32px; border-radius: 50%; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 16px; padding: 24px; margin: 0 0 24px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 8px; margin-bottom: 10px; }
.strip img { width: 100%; max-width: 128px; aspect-ratio: 1; }
img { border-radius: 8px; display: block; background: var(--line); }
figure { margin: 0; } figcaption { font-size: .85rem; margin-top: 6px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 20px; }
.grid img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.edits { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 20px 28px; }
.edit { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; align-content: start; }
.edit img { width: 100%; } .edit p { grid-column: 1 / -1; font-size: .92rem; } .edit figcaption { color: var(--soft); margin-top: 2px; }
.tiles { display: flex; flex-wrap: wrap; gap: 8px 10px; margin-top: 8px; } .tiles img { width: 80px; height: 80px; }
.tiles figcaption { margin-top: 2px; }
.said { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 10px 28px; margin-top: 16px; }
.said div { display: flex; gap: 10px; align-items: center; font-size: .92rem; line-height: 1.35; } .said img { width: 48px; height: 48px; border-radius: 6px; flex: none; }
.said span { display: block; }
.yes { color: var(--yes); font-weight: 600; } .no { color: var(--no); font-weight: 600; } .yes::before { content: "✓ "; } .no::before { content: "✗ "; }
dl.totals { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin: 16px 0; }
dl.totals div { border: 1px solid var(--line); border-radius: 12px; padding: 10px 14px; background: var(--card); }
dt { font-size: .8rem; color: var(--soft); } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
blockquote { margin: 8px 0 0; padding: 8px 12px; border-left: 3px solid var(--line); font-size: .85rem; }
svg { width: 100%; max-width: 520px; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
@media (max-width: 560px) { article { padding: 16px; } .tiles img { width: 64px; height: 64px; } .strip { grid-template-columns: repeat(5, 1fr); } }
"""


def write_page(summary: Mapping[str, Any], *, folder: Path) -> Path:
    """Write `folder/index.html` with every picture inside it.

    Args:
        summary: The demo's summary, laid out as the module says.
        folder: Where the pictures lie and the page goes.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: A picture named by the summary is not in `folder`: the page must not hide a missing result.
    """
    concepts = summary["concepts"]
    body = "\n".join(
        [
            "<h1>A model that remembers your things</h1>",
            f"<p>{len(concepts)} concepts were learned on this machine as soft tokens of a frozen model, "
            "then asked about, drawn and edited. Nothing here was picked by hand.</p>",
            f'<p class="soft"><small>{_text(summary["backbone"])} · {_text(summary["hardware"])} · commit '
            f"{_text(summary['commit'])} · {_text(summary['created'])}</small></p>",
            _numbers(summary["totals"]),
            _navigation(concepts, folder=folder),
            *(_concept(concept, folder=folder) for concept in concepts),
            "<article><h2>Where the time went</h2>",
            _numbers({name.replace("_", " "): f"{seconds:.1f} s" for name, seconds in summary["timings"].items()}),
            "</article>",
        ]
    )
    page = folder / "index.html"
    page.write_text(
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>OmniFarm demo</title>\n<style>{_STYLE}</style>\n<main>\n{body}\n</main>\n</html>\n",
        encoding="utf-8",
    )
    return page


def _text(value: object) -> str:
    return html.escape(str(value))


def _image(path: str, *, folder: Path, alt: str) -> str:
    data = base64.b64encode((folder / path).read_bytes()).decode()
    kind = "jpeg" if path.lower().endswith((".jpg", ".jpeg")) else "png"
    return f'<img alt="{_text(alt)}" loading="lazy" src="data:image/{kind};base64,{data}">'


def _anchor(concept: Mapping[str, Any]) -> str:
    return _text(str(concept["identifier"]).strip("<>"))


def _numbers(values: Mapping[str, Any]) -> str:
    cells = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="totals">{cells}</dl>'


def _navigation(concepts: Sequence[Mapping[str, Any]], *, folder: Path) -> str:
    links = "".join(
        f'<a href="#{_anchor(concept)}">{_image(concept["photos"][0], folder=folder, alt="")}{_text(concept["identifier"])}</a>'
        for concept in concepts
    )
    return f"<nav>{links}</nav>"


def _concept(concept: Mapping[str, Any], *, folder: Path) -> str:
    photos = "".join(
        _image(path, folder=folder, alt=f"training photo of {concept['identifier']}") for path in concept["photos"]
    )
    facts = "".join(f"<p>{_text(fact)}</p>" for fact in concept["extra_info"])
    parts = [
        f'<article id="{_anchor(concept)}">',
        f"<h2>{_text(concept['identifier'])} <small>{_text(concept['class_noun'])}</small></h2>",
        f"<h3>Taught</h3><div class='strip'>{photos}</div><p>{_text(concept['info'])}</p>{facts}",
        "<h3>Asked</h3>",
        _answers(concept["answers"], folder=folder),
        "<h3>Drawn</h3>",
        f'<div class="grid">{"".join(_drawing(drawing, folder=folder) for drawing in concept["drawings"])}</div>',
        "<h3>Edited</h3>",
        f'<div class="edits">{"".join(_edit(edit, folder=folder) for edit in concept["edits"])}</div>',
        f"<h3>Learned in {concept['steps']} steps, {concept['train_s']:.0f} s</h3>",
        _curves(concept["losses"]),
        "</article>",
    ]
    return "\n".join(parts)


def _answers(answers: Sequence[Mapping[str, Any]], *, folder: Path) -> str:
    """Show recognition as a row of photos with the verdict below, everything else as question, answer and truth."""
    recognised = [answer for answer in answers if answer["kind"] == "recognition" and answer["image"]]
    others = [answer for answer in answers if answer not in recognised]
    parts = []
    if recognised:
        tiles = "".join(
            f"<figure>{_image(answer['image'], folder=folder, alt='the photo asked about')}"
            f'<figcaption class="{_verdict(answer)}">{_text(answer["answer"])}</figcaption></figure>'
            for answer in recognised
        )
        parts.append(f'<p>{_text(recognised[0]["question"])}</p><div class="tiles">{tiles}</div>')
    if others:
        parts.append(f'<div class="said">{"".join(_said(answer, folder=folder) for answer in others)}</div>')
    return "\n".join(parts)


def _said(answer: Mapping[str, Any], *, folder: Path) -> str:
    picture = _image(answer["image"], folder=folder, alt="the photo asked about") if answer["image"] else ""
    truth = f" <small>it is: {_text(answer['expected'])}</small>" if answer["correct"] is False else ""
    return (
        f"<div>{picture}<p><span>{_text(answer['question'])}</span>"
        f'<span><b class="{_verdict(answer)}">{_text(answer["answer"])}</b>{truth}</span></p></div>'
    )


def _verdict(answer: Mapping[str, Any]) -> str:
    return {True: "yes", False: "no"}.get(answer["correct"], "")


def _drawing(drawing: Mapping[str, Any], *, folder: Path) -> str:
    replay = drawing["replay"]
    if replay is None:
        trace = "<p><small>without replay</small></p>"
    else:
        trace = (
            f"<blockquote>asked itself: {_text(replay['question'])}<br>remembered: {_text(replay['answer'])}<br>"
            f"drew: {_text(replay['prompt'])}<br><small>{_text(replay['status'])}</small></blockquote>"
        )
    picture = _image(drawing["image"], folder=folder, alt=str(drawing["prompt"]))
    return (
        f"<figure>{picture}<figcaption>{_text(drawing['prompt'])} <small>{drawing['seconds']:.1f} s</small>{trace}"
        "</figcaption></figure>"
    )


def _edit(edit: Mapping[str, Any], *, folder: Path) -> str:
    pictures = [("before", edit["before"]), ("edited", edit["after"])]
    if edit["truth"]:
        pictures.append(("truth", edit["truth"]))
    figures = "".join(
        f"<figure>{_image(path, folder=folder, alt=label)}<figcaption>{_text(label)}</figcaption></figure>"
        for label, path in pictures
    )
    return (
        f'<div class="edit"><p>{_text(edit["instruction"])} <small>{edit["seconds"]:.1f} s</small></p>{figures}</div>'
    )


def _curves(losses: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw every loss curve, each scaled to its own range, as one small inline SVG."""
    width, height, margin = 520, 140, 24
    colours = {"text": "#3b82f6", "image": "#f59e0b", "edit": "#10b981"}
    lines, labels = [], []
    for name, points in losses.items():
        if len(points) < 2:
            continue
        last_step = max(point[0] for point in points) or 1
        top = max(point[1] for point in points) or 1.0
        path = " ".join(
            f"{margin + point[0] / last_step * (width - 2 * margin):.1f},{height - margin - point[1] / top * (height - 2 * margin):.1f}"
            for point in points
        )
        colour = colours.get(name, "#888")
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        labels.append(f'<tspan fill="{colour}">{_text(name)} {points[0][1]:.3f} → {points[-1][1]:.3f}</tspan>')
    if not lines:
        return ""
    axis = f'<line x1="{margin}" x2="{width - margin}" y1="{height - margin}" y2="{height - margin}" stroke="currentColor" opacity=".2"/>'
    legend = f'<text x="{margin}" y="{height - 6}" xml:space="preserve">{"   ".join(labels)}</text>'
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="loss curves">{axis}{"".join(lines)}{legend}</svg>'
    )
