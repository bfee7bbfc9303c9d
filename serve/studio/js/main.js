// The frame: what the server is, who is calling, which of the three pages is shown.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { loginPage } from "./login.js";
import { lookPage } from "./look.js";
import { onePage } from "./one.js";
import { failure } from "./parts.js";
import { scoresPage } from "./scores.js";
import { teachPage } from "./teach.js";
import { usePage } from "./use.js";

const page = document.getElementById("page");
const notice = document.getElementById("notice");
const leave = document.getElementById("leave");
const TITLES = { teach: "Teach", use: "Use", look: "Look", scores: "How well it does" };
// Kept while the studio is open, so that going from page to page loses nothing.
const kept = new Map();
let about = null;
let shown = null;
let waiting = false;

async function start() {
  try {
    about = await api.get("/studio/api/about");
    if (about.needs_key && !api.key()) return lock();
    await api.get("/v1/concepts");
  } catch (error) {
    if (error.status === 401 && about?.needs_key) return lock();
    fill(page, failure(error), h("p", { className: "row" }, h("button", { className: "primary", onclick: () => location.reload() }, "Try again")));
    return;
  }
  leave.hidden = !about.needs_key;
  await show();
}

function lock() {
  kept.clear();
  leave.hidden = true;
  document.title = "OmniFarm studio";
  mark("");
  fill(page, loginPage({ onenter: start }));
}

function mark(name) {
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

async function show() {
  if (!about || (about.needs_key && !api.key())) return;
  const [, name = "", item = ""] = location.hash.split("/").map(decodeURIComponent);
  const first = shown === null;
  if (!TITLES[name]) {
    const { data } = await api.get("/v1/concepts");
    location.replace(data.length ? "#/use" : "#/teach");
    return;
  }
  shown?.hide?.();
  mark(name === "scores" ? "look" : name);
  document.title = `${item && name === "look" ? `<${item}>` : TITLES[name]} · OmniFarm studio`;
  if (name === "look") shown = item ? onePage({ about, name: item }) : lookPage();
  else if (name === "scores") shown = item ? scoresPage({ run: item }) : lookPage();
  else {
    if (!kept.has(name)) kept.set(name, (name === "teach" ? teachPage : usePage)({ about }));
    shown = kept.get(name);
  }
  fill(page, shown.element);
  await shown.show?.();
  scrollTo({ top: shown.keepsBottom ? document.body.scrollHeight : 0, behavior: "instant" });
  if (!first && !page.contains(document.activeElement)) page.focus({ preventScroll: true });
}

addEventListener("hashchange", () => show().catch((error) => fill(page, failure(error))));
addEventListener("studio:locked", () => { api.keep(""); if (about?.needs_key) lock(); });
addEventListener("studio:offline", async () => {
  if (waiting) return;
  waiting = true;
  notice.className = "notice";
  notice.textContent = "The server does not answer. Trying again; what you wrote is still here.";
  notice.hidden = false;
  await api.untilBack();
  waiting = false;
  notice.className = "notice good";
  notice.textContent = "The server is back.";
  setTimeout(() => { if (!waiting) notice.hidden = true; }, 4000);
  if (!about) start();
});
addEventListener("offline", () => dispatchEvent(new CustomEvent("studio:offline")));
leave.addEventListener("click", () => { api.keep(""); lock(); });
// A file dropped beside its place would otherwise replace the page.
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => event.preventDefault());

start();
