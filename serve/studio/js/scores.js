// How well it does: benchmark runs that lie in the store, and one run's tables.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { copyButton, download, failure } from "./parts.js";
import { several } from "./words.js";

// A part of the Look page: the runs there are, or how to make one.
export function scoresList() {
  const body = h("div", { className: "stack tight" });
  const element = h("section", { className: "scores" }, h("h2", {}, "How well it does"), body);

  async function show() {
    try {
      const { reports, store } = await api.get("/studio/api/reports");
      fill(body, reports.length ? h("ul", { className: "stack tight" }, reports.map(line)) : nothing(store));
    } catch (error) {
      fill(body, failure(error, { again: show }));
    }
  }

  const line = (one) => h("li", {}, h("a", { href: `#/scores/${encodeURIComponent(one.run)}` }, one.run),
    h("span", { className: "small soft" }, ` · ${one.date} · ${several(one.num_concepts, "concept")}, ${several(one.num_items, "question or request", "questions and requests")}`));

  function nothing(store) {
    if (!store) return h("p", { className: "soft" }, "No benchmark has been run for you yet. Whoever runs the server can run one; its report appears here.");
    const command = `omnifarm bench run --data miniature:0 --quick --store ${store}`;
    return [h("p", { className: "soft" }, "No benchmark has been run here yet. This runs a small one on the drawn world, in a terminal; its report appears here:"),
      h("div", { className: "row" }, h("pre", { className: "snippet", tabIndex: 0, "aria-label": "Command" }, command), copyButton("Copy", () => command))];
  }

  return { element, show };
}

export function scoresPage({ run }) {
  const body = h("div", { className: "stack" });
  const element = h("div", {}, h("p", { className: "small" }, h("a", { href: "#/look" }, "Look"), " · ", h("code", { className: "soft" }, run)), body);
  const path = `/studio/api/reports/${encodeURIComponent(run)}`;

  async function show() {
    try {
      draw(await api.get(path));
    } catch (error) {
      fill(body, failure(error, { again: show }));
    }
  }

  function draw(report) {
    const told = h("div", {});
    const save = async () => {
      try {
        download(await api.blob(`${path}/page`), `${run}.html`);
      } catch (error) {
        fill(told, failure(error));
      }
    };
    fill(body,
      h("div", { className: "row spread" },
        h("div", {}, h("h1", {}, "How well it does"), h("p", { className: "lead" }, "Means over concepts; below each, the interval that holds 95 % of resampled means.")),
        h("button", { onclick: save }, "Save the whole report")), told,
      report.sections.map(section),
      part("Measured how", h("dl", { className: "facts-of" }, report.conditions.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))),
      report.notes.length > 0 && part("The rows", list(report.notes)),
      report.not_run.length > 0 && part("Not run, and why", list(report.not_run)));
  }

  return { element, show };
}

const part = (title, ...content) => h("section", { className: "scores" }, h("h2", {}, title), content);
const list = (lines) => h("ul", { className: "small soft stack tight" }, lines.map((line) => h("li", {}, line)));

function section({ title, columns, rows }) {
  const best = columns.map(({ is_higher_better: up }, index) => {
    const values = rows.map((row) => row.cells[index]?.value).filter((value) => typeof value === "number");
    return up === null || new Set(values).size < 2 ? null : Math[up ? "max" : "min"](...values);
  });
  const head = h("tr", {}, h("th", { scope: "col" }, h("span", { className: "unseen" }, "Row")), columns.map((column) => h("th", { scope: "col" }, column.title)));
  const lines = rows.map((row) => h("tr", { className: row.is_ours ? "ours" : "" }, h("th", { scope: "row" }, row.title), row.cells.map((cell, index) => figure(cell, best[index]))));
  const table = h("div", { className: "wide", tabIndex: 0, role: "region", "aria-label": title }, h("table", {}, h("thead", {}, head), h("tbody", {}, lines)));
  const about = columns.filter((column) => column.about);
  return part(title, table, about.length > 0 && h("p", { className: "small soft" }, about.map((column) => `${column.title}: ${column.about}`).join(". "), "."));
}

function figure(cell, best) {
  if (!cell || cell.value === null) return h("td", { className: "soft" }, cell?.reason.startsWith("not run") ? "not run" : "–");
  const interval = cell.low === null ? "" : `${cell.low.toFixed(2)} to ${cell.high.toFixed(2)}`;
  const failed = cell.failures ? `, ${cell.failures} failed` : "";
  const value = cell.value.toFixed(3);
  return h("td", {}, best !== null && Math.abs(cell.value - best) < 5e-4 ? h("strong", {}, value) : value, h("small", {}, interval, failed));
}
