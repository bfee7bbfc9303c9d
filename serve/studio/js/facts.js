// The facts form: sentences, and questions with their answer that may go with each.

import { field, fill, fold, h } from "./dom.js";

export const EXAMPLES = [
  "The home of <…> is the beach.",
  "The favorite toy of <…> is a red ball.",
  "The best friend of <…> is a blue bird.",
];

export function factsField({ identifier, onchange }) {
  const rows = [];
  const list = h("ul", { className: "facts", "aria-label": "Facts" });
  const more = h("button", { type: "button", className: "slim", onclick: () => { add({}); rows.at(-1).input.focus(); } }, "Add a fact");
  const element = h("div", { className: "stack" }, list, h("div", {}, more));

  function add({ sentence = "", questions = [], answer = "" }) {
    const number = rows.length + 1;
    const example = EXAMPLES[rows.length % EXAMPLES.length].replace("<…>", identifier());
    const input = h("input", { value: sentence, placeholder: example, maxLength: 400, "aria-label": `Fact ${number}` });
    const answered = h("input", { value: answer, placeholder: "The beach.", maxLength: 400 });
    const asked = questions.length ? questions : [""];
    const questionInputs = asked.map((question) => h("input", { value: question, placeholder: `Where does ${identifier()} live?`, maxLength: 400 }));
    const row = { input, answered, questionInputs, before: sentence };
    input.addEventListener("input", () => { follow(row); onchange(); });
    const summary = questions.length ? "The questions it answers" : "Add a question that it answers";
    const qa = h("div", { className: "qa" }, questionInputs.map((one, index) => field(index ? "or asked so" : "Question", one)), field("Answer", answered, { hint: "Short answers are learned best." }));
    const gone = h("button", {
      type: "button", className: "quiet round", "aria-label": `Remove fact ${number}`,
      onclick: () => { rows.splice(rows.indexOf(row), 1); draw(); (rows.at(-1)?.input ?? more).focus(); onchange(); },
    }, "×");
    row.item = h("li", { className: "fact" }, input, gone, fold(summary, qa));
    rows.push(row);
    draw();
  }

  // A changed sentence takes its answer along: "... is the beach." becoming "... is the forest." answers "The forest."
  function follow(row) {
    const old = row.answered.value.trim().replace(/[.!]$/, "");
    const at = old ? row.before.toLowerCase().lastIndexOf(old.toLowerCase()) : -1;
    if (at < 0) return;
    const [head, tail] = [row.before.slice(0, at), row.before.slice(at + old.length)];
    const now = row.input.value;
    if (!now.startsWith(head) || !now.endsWith(tail) || now.length <= head.length + tail.length) return;
    const said = now.slice(head.length, now.length - tail.length);
    row.answered.value = `${said[0].toUpperCase()}${said.slice(1)}.`;
    row.before = now;
  }

  function draw() {
    fill(list, rows.map((row) => row.item));
  }

  function inputs() {
    return rows.flatMap((row) => [row.input, row.answered, ...row.questionInputs]);
  }

  add({});
  return {
    element,
    set(facts) { rows.length = 0; facts.forEach(add); draw(); },
    rename(from, to) {
      for (const input of inputs()) {
        input.value = input.value.replaceAll(from, to);
        input.placeholder = input.placeholder.replaceAll(from, to);
      }
      for (const row of rows) row.before = row.before.replaceAll(from, to);
    },
    sentences: () => rows.map((row) => row.input.value.trim()).filter(Boolean),
    questions: () => rows.flatMap((row) => {
      const answer = row.answered.value.trim();
      return answer ? row.questionInputs.map((one) => one.value.trim()).filter(Boolean).map((question) => ({ question, answer })) : [];
    }),
  };
}
