// Use: a conversation with the chosen concepts. Asking, drawing and editing are turns of it.

import * as api from "./api.js";
import { chosen, handed, settle, toggle } from "./chosen.js";
import { composer } from "./composer.js";
import { fill, h, named } from "./dom.js";
import { failure } from "./parts.js";
import { turn } from "./turns.js";

export function usePage({ about }) {
  let concepts = [];
  let running = null;
  const names = () => concepts.map((concept) => concept.name);
  const talk = h("div", { className: "talk" });
  const told = h("p", { className: "unseen", role: "status" });
  const chips = h("div", { className: "row", role: "group", "aria-label": "Concepts in this conversation" });
  const desk = composer({ about, onsend: send, onstop: () => running?.abort() });
  const element = h("div", { className: "use" }, h("div", { className: "stack tight" }, h("h1", { className: "unseen" }, "Use"), chips), talk, told, desk.element);
  const page = { element, show, keepsBottom: false };

  async function show() {
    try {
      concepts = (await api.get("/v1/concepts")).data;
    } catch (error) {
      if (!talk.firstChild) fill(talk, failure(error, { again: () => { fill(talk); show(); } }));
      return;
    }
    settle(names());
    drawChips();
    const given = handed();
    if (!page.keepsBottom) welcome();
    if (given) use(given.kind, given);
  }

  function drawChips() {
    const picked = chosen();
    fill(chips, concepts.map((concept) => h("button", {
      className: "chip", "aria-pressed": String(picked.includes(concept.name)),
      onclick: (event) => {
        toggle(concept.name);
        event.currentTarget.setAttribute("aria-pressed", String(chosen().includes(concept.name)));
        desk.point(chosen());
        if (!page.keepsBottom) welcome();
      },
    }, named(concept.identifier))));
    desk.point(picked);
  }

  function welcome() {
    if (!concepts.length) {
      fill(talk, h("div", { className: "welcome" }, h("h1", {}, "Nobody is here yet"), h("p", { className: "lead" }, "Teach the model something of yours first; it takes about a minute."), h("div", {}, h("a", { className: "button primary", href: "#/teach" }, "Teach"))));
      return;
    }
    const [name] = chosen();
    const who = name && `<${name}>`;
    const ideas = who ? suggestions(who) : [];
    fill(talk, h("div", { className: "welcome" },
      h("h1", {}, who ? ["Ask about ", named(who), ", or draw it"] : "Choose somebody above"),
      h("p", { className: "lead" }, "Add a picture to ask about it or to change it."),
      h("div", { className: "row" }, ideas.map(([kind, text]) => h("button", { className: "chip", onclick: () => desk.say(kind, text) }, named(text))))));
  }

  function suggestions(who) {
    if (about.world) {
      return [["ask", `Where does ${who} live?`], ["ask", `What does ${who} look like?`], ["draw", `A photo of ${who} in the snow.`], ["draw", `A photo of ${who} at home.`], ["draw", `A photo of ${who} with the best friend.`]];
    }
    return [["ask", `What do you know about ${who}?`], ["draw", `A photo of ${who}.`], ["draw", `A photo of ${who} at home.`]];
  }

  // "maeve" as a word means <maeve>, when she is chosen.
  function addressed(text) {
    return chosen().reduce((said, name) => said.replace(new RegExp(`(?<![<\\w-])${name}(?![\\w>-])`, "gi"), `<${name}>`), text);
  }

  async function send(wanted) {
    if (running) return;
    const text = addressed(wanted.text);
    const mentioned = names().filter((name) => text.includes(`<${name}>`));
    const picked = [...new Set([...mentioned, ...chosen()])].map((name) => concepts.find((concept) => concept.name === name)).filter(Boolean);
    if (!page.keepsBottom) fill(talk);
    page.keepsBottom = true;
    running = new AbortController();
    const one = turn({ ...wanted, text, concepts: picked, about, signal: running.signal, again: (changed) => send({ ...wanted, ...changed }), use });
    talk.append(h("div", { className: "said" }, wanted.picture && h("img", { src: wanted.picture.url, alt: wanted.picture.name }), h("p", {}, named(text))), one.element);
    desk.working(true);
    one.element.scrollIntoView({ block: "end" });
    told.textContent = await one.done;
    running = null;
    desk.working(false);
    one.element.scrollIntoView({ block: "nearest" });
  }

  // A result becomes the picture of the next turn.
  function use(kind, picture) {
    desk.attach(picture);
    desk.start(kind);
  }

  return page;
}
