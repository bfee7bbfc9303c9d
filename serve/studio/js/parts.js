// Parts that several pages show: failures, pictures, curves, dialogs, downloads.

import { fill, h, icon, svg } from "./dom.js";
import { explained } from "./words.js";

export const PATHS = {
  send: "M12 19V5M5 12l7-7 7 7",
  stop: "M7 7h10v10H7z",
  attach: "M12 5v14M5 12h14",
  copy: "M9 9h10v11H9zM5 15V4h10",
};

export function failure(error, { again } = {}) {
  const { title, advice, detail } = explained(error);
  const more = detail && detail !== advice && h("details", {}, h("summary", {}, "What the server said"), detail);
  const retry = again && h("p", {}, h("button", { className: "slim", onclick: again }, "Try again"));
  return h("div", { className: "message", role: "alert" }, h("strong", {}, title), advice, more, retry);
}

export function message(kind, title, ...rest) {
  return h("div", { className: `message ${kind}` }, h("strong", {}, title), ...rest);
}

export const pngUrl = (base64) => `data:image/png;base64,${base64}`;

export async function fromUrl(url) {
  // fetch() of data: URLs is not allowed by the page's policy, nor needed.
  const [head, data] = url.split(",");
  const letters = atob(data);
  return new Blob([Uint8Array.from(letters, (letter) => letter.charCodeAt(0))], { type: head.slice(5).split(";")[0] });
}

export function toUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

export function download(data, filename) {
  const file = data instanceof Blob ? data : new Blob([data], { type: "application/json" });
  const url = URL.createObjectURL(file);
  h("a", { href: url, download: filename }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

export function copyButton(label, text) {
  const button = h("button", {
    className: "slim",
    type: "button",
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(text());
        fill(button, "Copied");
      } catch {
        fill(button, "Select the text and copy it");
      }
      setTimeout(() => fill(button, icon(PATHS.copy), label), 2500);
    },
  }, icon(PATHS.copy), label);
  return button;
}

const LOSSES = { understanding: "answers", generation: "drawings", editing: "edits" };

// A running mean: single steps jump about by what they happened to draw.
function smooth(values) {
  let mean = null;
  return values.map((value) => (value === null ? null : (mean = mean === null ? value : 0.7 * mean + 0.3 * value)));
}

// Losses along the training, each on its own scale: what counts is that they fall.
export function curve(columns) {
  const drawn = Object.keys(LOSSES).filter((name) => columns?.[name]?.some((value) => value !== null));
  if (!drawn.length) return h("p", { className: "hint" }, "The losses appear after the first seconds.");
  const last = Math.max(...columns.step, 1);
  const means = Object.fromEntries(drawn.map((name) => [name, smooth(columns[name])]));
  const paths = drawn.map((name) => {
    const points = means[name].map((value, index) => [columns.step[index] / last, value]).filter(([, value]) => value !== null);
    const values = points.map(([, value]) => value);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const d = points.map(([x, y], index) => `${index ? "L" : "M"}${(x * 300).toFixed(1)} ${(76 - (72 * (y - low)) / (high - low || 1)).toFixed(1)}`).join("");
    return svg("path", { d, class: name });
  });
  const now = (name) => means[name].filter((value) => value !== null).at(-1);
  const words = drawn.map((name) => `${LOSSES[name]} ${now(name).toFixed(3)}`);
  const key = drawn.map((name, index) => h("span", {}, h("i", { className: name }), words[index]));
  const picture = svg("svg", { viewBox: "0 0 300 80", preserveAspectRatio: "none", class: "curve", role: "img", "aria-label": `Losses up to step ${Math.round(last)}: ${words.join(", ")}` }, ...paths);
  return h("div", { className: "stack tight" }, picture, h("div", { className: "key" }, key));
}

export function ask(title, body, { yes, danger = false }) {
  return new Promise((done) => {
    const box = h("dialog", { "aria-labelledby": "asked" },
      h("form", { method: "dialog", className: "stack" },
        h("h2", { id: "asked" }, title), body,
        h("div", { className: "row" }, h("button", { value: "yes", className: danger ? "danger" : "primary" }, yes), h("button", { value: "no", autofocus: true }, "Keep it"))));
    box.addEventListener("close", () => { box.remove(); done(box.returnValue === "yes"); });
    document.body.append(box);
    box.showModal();
  });
}
