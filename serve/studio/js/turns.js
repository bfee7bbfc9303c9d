// One turn of the conversation: sends it, shows what comes while it comes, then what can be done with the result.

import * as api from "./api.js";
import { fill, fold, h, named } from "./dom.js";
import { copyButton, download, failure, fromUrl, message, pngUrl } from "./parts.js";
import { curl, inputName, python, recipe } from "./recipe.js";
import { looked } from "./where.js";

const SLOW_MS = 8000;
const PARTIALS = 3;

// {element, done}: what is shown at once, and a promise of what a screen reader should hear at the end.
export function turn(wanted) {
  const state = h("p", { className: "state" });
  const shown = h("div", { className: "stack tight" });
  const more = h("div", { className: "stack tight" });
  const element = h("div", { className: "reply" }, shown, state, more);
  const view = { state, shown, more };
  return { element, done: finish(wanted, view) };
}

async function finish(wanted, view) {
  const began = performance.now();
  let last = began;
  const slow = setInterval(() => {
    if (performance.now() - last > SLOW_MS) view.state.textContent = "Still working. The server may be busy with others; you can stop and try later.";
  }, 1000);
  const seconds = () => ((performance.now() - began) / 1000).toFixed(1);
  try {
    const work = { ask, draw: picture, edit: picture }[wanted.kind];
    return await work(wanted, view, { seconds, alive: () => { last = performance.now(); } });
  } catch (error) {
    fill(view.state);
    if (error.name === "AbortError") {
      fill(view.shown, message("warning", "Stopped"));
      return "Stopped.";
    }
    fill(view.shown, failure(error, { again: () => wanted.again({}) }));
    return "";
  } finally {
    clearInterval(slow);
  }
}

// The request as the server gets it; what is streamed besides is not part of it.
export function requestOf({ kind, text, picture: given, concepts, settings, about }) {
  const named_ = concepts.length ? { concepts: concepts.map((concept) => concept.name) } : {};
  if (kind === "ask") {
    const content = given ? [{ type: "text", text }, { type: "image_url", image_url: { url: given.url } }] : text;
    return { path: "/v1/chat/completions", body: { model: about.model, ...named_, messages: [{ role: "user", content }], ...settings } };
  }
  return { path: kind === "draw" ? "/v1/images/generations" : "/v1/images/edits", body: { model: about.model, ...named_, prompt: text, ...settings } };
}

async function ask(wanted, { state, shown, more }, { seconds, alive }) {
  const { path, body } = requestOf(wanted);
  const answer = h("p", { className: "answer" });
  fill(shown, answer);
  state.textContent = "Thinking…";
  let text = "";
  let why = "stop";
  await api.stream(path, { method: "POST", json: { ...body, stream: true }, signal: wanted.signal }, (_, { choices }) => {
    alive();
    text += choices[0]?.delta?.content ?? "";
    why = choices[0]?.finish_reason ?? why;
    fill(answer, named(text));
    if (text) state.textContent = "";
  });
  if (!text.trim()) fill(answer, h("span", { className: "soft" }, "It has no answer to that."));
  state.textContent = why === "length" ? "Cut off: the answer was longer than allowed." : "";
  fill(more, gaze(wanted), exports(wanted, { path, body, result: { answer: text, finish_reason: why, seconds: Number(seconds()) } }));
  return `Answer: ${text}`;
}

// Where the first of the concepts looks in the picture in question; asked for when it is unfolded.
function gaze({ picture: given, concepts: [concept] }) {
  if (!given || !concept) return null;
  const box = fold(`Where ${concept.identifier} looks`);
  box.addEventListener("toggle", () => box.append(looked({ name: concept.name, picture: given })), { once: true });
  return box;
}

async function picture(wanted, { state, shown, more }, { seconds, alive }) {
  const { path, body } = requestOf(wanted);
  const isEdit = wanted.kind === "edit";
  const image = h("img", { alt: "", hidden: true });
  const frame = h("div", { className: "picture forming" }, image);
  const [height, width] = wanted.about.drawing.height_width;
  frame.style.aspectRatio = `${width} / ${height}`;
  fill(shown, frame);
  state.textContent = body.replay === "off" ? "Drawing…" : "Remembering…";
  let result = null;
  const options = { method: "POST", signal: wanted.signal };
  if (isEdit) options.form = await formOf({ ...body, stream: true, partial_images: PARTIALS }, wanted.picture);
  else options.json = { ...body, stream: true, partial_images: PARTIALS };
  await api.stream(path, options, (name, data) => {
    alive();
    if (name.endsWith(".completed")) {
      result = data;
      return;
    }
    image.hidden = false;
    frame.style.aspectRatio = "auto";
    image.src = pngUrl(data.b64_json);
    image.alt = "A picture on its way";
    state.textContent = `Drawing, ${data.partial_image_index + 1} of ${PARTIALS + 1}`;
  });
  if (!result) throw api.offline();
  const url = pngUrl(result.b64_json);
  fill(shown, isEdit ? slider(wanted.picture.url, url, wanted.text) : h("div", { className: "picture" }, h("img", { src: url, alt: wanted.text })));
  state.textContent = `${isEdit ? "Changed" : "Drawn"} in ${seconds()} s · seed ${result.seed}${checkOf(result)}`;
  const made = { url, name: isEdit ? "edited.png" : "drawn.png" };
  const { b64_json: _, type: __, ...plain } = result;
  const trace = traceOf(result.replay ?? []);
  fill(more,
    trace,
    h("div", { className: "row" },
      h("button", { className: "slim", onclick: async () => download(await fromUrl(url), made.name) }, "Download"),
      h("button", { className: "slim", onclick: () => wanted.use("edit", made) }, "Edit it"),
      h("button", { className: "slim", onclick: () => wanted.use("ask", made) }, "Ask about it"),
      h("button", { className: "slim", onclick: () => wanted.again({ settings: { ...wanted.settings, seed: Math.floor(Math.random() * 2 ** 31) } }) }, "Another seed")),
    exports(wanted, { path, body, result: plain, made }));
  return `${isEdit ? "Changed" : "Drawn"} in ${seconds()} seconds.`;
}

async function formOf(body, given) {
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) {
    for (const one of [value].flat()) form.append(Array.isArray(value) ? `${name}[]` : name, String(one));
  }
  form.append("image", await fromUrl(given.url), given.name);
  return form;
}

// Of a removal that the model looked at: what it took.
function checkOf({ num_attempts: attempts, is_gone: isGone }) {
  if (isGone === false) return ` · still seen in it after ${attempts} attempts`;
  return attempts > 1 ? ` · gone at attempt ${attempts}` : "";
}

const TRACES = {
  no_open_fact: "Your words left nothing open, so it drew them as they are.",
  fallback_parse: "It found no clear answer in its memory, so it drew your words as they are.",
  fallback_leak: "What it remembered could not be used, so it drew your words as they are.",
};

function traceOf(traces) {
  const told = traces.filter((trace) => trace.status !== "off");
  if (!told.length) return null;
  return fold("What it remembered", told.map((trace) => h("dl", { className: "trace" },
    trace.status === "used" ? [h("dt", {}, "It asked itself"), h("dd", {}, named(trace.question)), h("dt", {}, "It remembered"), h("dd", {}, h("strong", {}, named(trace.answer)))] : h("dd", {}, TRACES[trace.status]),
    h("dt", {}, "It drew"), h("dd", {}, named(trace.prompt)))));
}

function slider(before, after, words) {
  const box = h("div", { className: "slider" });
  const range = h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of the picture before the edit is shown", oninput: () => box.style.setProperty("--cut", `${range.value}%`) });
  fill(box, h("img", { src: after, alt: `After: ${words}` }), h("img", { className: "before", src: before, alt: "Before" }), h("span", {}, "Before"), h("span", {}, "After"), range);
  return box;
}

// The recipe as a file, and the same request as code.
function exports(wanted, { path, body, result, made }) {
  const given = wanted.picture && wanted.kind !== "draw" ? wanted.picture : null;
  const codes = { curl: curl({ kind: wanted.kind, path, body, given }), "openai (Python)": python({ kind: wanted.kind, body, given }) };
  const save = h("button", { className: "slim", onclick: async () => download(await recipe({ wanted, path, body, result, made }), `${wanted.kind}-${body.seed}.json`) }, "Recipe (JSON)");
  const input = given && h("button", { className: "slim", onclick: async () => download(await fromUrl(given.url), inputName(given)) }, `Download ${inputName(given)}`);
  return fold("Make it again", h("div", { className: "stack" },
    h("div", { className: "row" }, save, input),
    Object.entries(codes).map(([label, code]) => h("div", { className: "stack tight" }, h("div", { className: "row spread" }, h("h3", {}, label), copyButton("Copy", () => code)), h("pre", { className: "snippet", tabIndex: 0, "aria-label": label }, code)))));
}
