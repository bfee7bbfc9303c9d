// Teach: photographs, a name, a kind and facts in; a concept being learned out.

import * as api from "./api.js";
import { becoming } from "./becoming.js";
import { choice, field, fill, fold, h } from "./dom.js";
import { factsField } from "./facts.js";
import { failure, fromUrl, pngUrl } from "./parts.js";
import { photoField } from "./photos.js";
import { several } from "./words.js";

const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$/;
const NOUNS = { person: ["man", "woman", "girl", "boy"], pet: ["dog", "cat", "rabbit", "horse"], object: ["mug", "backpack", "bicycle", "lamp"] };
const GROUPS = { person: "Person", pet: "Pet", object: "Object" };

export function teachPage({ about }) {
  // What an invented concept brings besides what the form shows: captions, questions on photos, edits, pictures of them.
  let brought = null;
  let group = "pet";
  let lastName = "";
  const identifier = () => `<${name.value.trim() || "name"}>`;
  const running = h("div", { className: "stack running" });
  const told = h("div", { className: "stack" });
  const ready = h("p", { className: "ready", role: "status" });
  const start = h("button", { className: "primary", type: "submit" }, "Start teaching");

  const photos = photoField({ about, title: "Drop photos here, or choose them", hint: "About ten, from different sides and places. JPEG, PNG or WebP.", onchange: check });
  const others = photoField({ about, title: "Drop pictures of others here", hint: "Similar ones without it. They teach it to say no.", onchange: check });
  const name = h("input", { autocomplete: "off", autocapitalize: "none", spellcheck: false, placeholder: "maeve", maxLength: 64, name: "name", oninput: rename });
  const nameField = field("Name", name, { hint: "Later you write it in angle brackets." });
  const nouns = h("datalist", { id: "nouns" });
  const noun = h("input", { autocomplete: "off", list: "nouns", placeholder: "dog", maxLength: 64, name: "noun", oninput: check });
  const groups = choice("What is it?", GROUPS, { value: group, onchange: (value) => { group = value; suggest(); } });
  const looks = h("input", { maxLength: 400, name: "looks", oninput: check });
  const facts = factsField({ identifier, onchange: check });
  const steps = h("input", { type: "number", min: 1, max: 20000, inputMode: "numeric", placeholder: "the model's own", name: "steps" });

  function suggest() {
    const known = about.world?.nouns ?? NOUNS;
    fill(nouns, known[group].map((value) => h("option", { value })));
    noun.placeholder = known[group][0];
  }

  function rename() {
    const now = name.value.trim();
    const isGood = NAME.test(now);
    nameField.say(now && !isGood ? "Letters, digits, - and _, beginning with a letter or digit." : "");
    if (isGood) {
      const [from, to] = [lastName ? `<${lastName}>` : "<name>", `<${now}>`];
      facts.rename(from, to);
      looks.value = looks.value.replaceAll(from, to);
      lastName = now;
    }
    looks.placeholder = `${identifier()} is a brown dog with floppy ears and a red collar.`;
    check();
  }

  function missing() {
    const lacks = [];
    if (!photos.usable().length) lacks.push("photos");
    if (!NAME.test(name.value.trim())) lacks.push("a name");
    if (!noun.value.trim()) lacks.push("what it is");
    return lacks;
  }

  function check() {
    const lacks = missing();
    const num = photos.usable().length;
    ready.textContent = lacks.length ? `Still needed: ${lacks.join(", ")}.`
      : photos.isBusy() ? "Photos are on their way…"
        : num < 4 ? `Ready. ${several(num, "photo")} will do; about ten teach it better.` : `Ready: ${several(num, "photo")}, ${several(facts.sentences().length, "fact")}.`;
    start.disabled = lacks.length > 0 || photos.isBusy() || others.isBusy();
  }

  async function invent(kind, button) {
    for (const one of inventions.querySelectorAll("button")) one.disabled = true;
    fill(told);
    try {
      const found = await api.get(`/studio/api/inventions?group=${kind}`);
      const { document: told_, pictures } = found;
      brought = { ...found, from: `<${found.name}>` };
      group = kind;
      groups.set(kind);
      suggest();
      await photos.give(told_.photos.map((key, index) => ({ key, name: `Photo ${index + 1}`, url: pngUrl(pictures[key]) })));
      await others.give(told_.negatives.map((key, index) => ({ key, name: `Other ${index + 1}`, url: pngUrl(pictures[key]) })));
      lastName = found.name;
      name.value = found.name;
      noun.value = told_.class;
      looks.value = told_.info;
      facts.set(told_.facts);
      rename();
      fill(gift, h("p", { className: "hint" }, `With them come ${told_.negatives.length} pictures of others, ${told_.qa.length} questions about the photos and ${told_.edits.length} examples of edits. Give it another name or another home, if you like.`));
    } catch (error) {
      fill(told, failure(error));
    }
    for (const one of inventions.querySelectorAll("button")) one.disabled = false;
    button.focus();
  }

  const gift = h("div", { role: "status" });
  const inventions = h("div", { className: "row" }, Object.entries({ person: "A person", pet: "A pet", object: "An object" }).map(([kind, label]) =>
    h("button", { type: "button", className: "slim", onclick: (event) => invent(kind, event.currentTarget) }, label)));
  const welcome = about.world && h("div", { className: "message good stack tight" },
    h("div", {}, h("strong", {}, "No photos at hand?"), "This server runs the miniature, which knows a small drawn world and no photographs. Meet somebody from that world:"), inventions, gift);

  const sheet = (title, words, ...content) => h("section", { className: "sheet" },
    h("header", {}, h("h2", {}, title), h("p", { className: "small soft" }, words)), h("div", { className: "stack" }, content));
  const form = h("form", { className: "teach", noValidate: true, onsubmit: submit },
    sheet("Photos", "What it looks like.", welcome, photos.element, fold("Pictures of others (they teach it to say no)", others.element)),
    sheet("Name", "What you call it.", groups,
      h("div", { className: "pair" }, nameField, h("div", {}, field("In one word, it is a", noun), nouns)), field("How it looks, in one sentence", looks)),
    sheet("Facts", "What no photo shows. It remembers them when you ask or draw.", facts.element,
      about.world && h("p", { className: "hint" }, `Places of this world: ${about.world.places.join(", ")}.`),
      fold("Advanced", h("div", { className: "pair" }, field("Training steps", steps, { hint: "Fewer are quicker and learn less." })))),
    h("div", { className: "finish" }, ready, start));
  const element = h("div", {}, h("h1", {}, "Teach it something of yours"), h("p", { className: "lead" }, "About ten photos and a few facts. The model itself stays as it is; what it learns is one small file that is yours."), running, form, told);

  // "maeve" as a word means <maeve>.
  function tell(text) {
    const bare = new RegExp(`(?<![<\\w-])${name.value.trim()}(?![\\w>-])`, "gi");
    return text.replace(bare, identifier());
  }

  async function send(photo) {
    photo.id ??= (await api.upload(photo.file, "vision", `${photo.key ?? photo.name}`)).id;
    return photo.id;
  }

  async function sendAll() {
    const shown = [...photos.usable(), ...others.usable()];
    const keys = new Map(shown.filter((photo) => photo.key).map((photo) => [photo.key, photo]));
    const hidden = [];
    for (const edit of brought?.document.edits ?? []) {
      for (const key of [edit.source, edit.target]) hidden.push({ key, file: await fromUrl(pngUrl(brought.pictures[key])) });
    }
    for (const one of hidden) keys.set(one.key, one);
    const all = [...shown, ...hidden];
    let sent = 0;
    await api.each(all, async (photo) => {
      await send(photo);
      sent += 1;
      ready.textContent = `Sending pictures: ${sent} of ${all.length}`;
    });
    return keys;
  }

  function compose(keys) {
    const given = brought?.document;
    const here = (text) => tell(brought ? text.replaceAll(brought.from, identifier()) : text);
    const idOf = (key) => keys.get(key)?.id;
    const captions = Object.entries(given?.captions ?? {}).filter(([key]) => idOf(key)).map(([key, text]) => [idOf(key), here(text)]);
    const onPhotos = (given?.qa ?? []).filter((qa) => !qa.photo || idOf(qa.photo))
      .map(({ question, answer, photo }) => ({ question: here(question), answer: here(answer), ...(photo && { photo: idOf(photo) }) }));
    return {
      class: noun.value.trim(),
      group,
      photos: photos.usable().map((photo) => photo.id),
      captions: Object.fromEntries(captions),
      info: here(looks.value.trim()),
      extra_info: facts.sentences().map(here),
      qa: [...facts.questions().map(({ question, answer }) => ({ question: here(question), answer: here(answer) })), ...onPhotos],
      negatives: others.usable().map((photo) => photo.id),
      edits: (given?.edits ?? []).map((edit) => ({ source: idOf(edit.source), target: idOf(edit.target), instruction: here(edit.instruction) })),
    };
  }

  async function submit(event) {
    event.preventDefault();
    start.disabled = true;
    fill(told);
    try {
      const text = JSON.stringify(compose(await sendAll()), null, 1);
      const file = await api.upload(new Blob([text], { type: "application/json" }), "fine-tune", `${name.value.trim()}.json`);
      const wanted = Number(steps.value) ? { hyperparameters: { steps: Number(steps.value) } } : {};
      const job = await api.post("/v1/fine_tuning/jobs", { model: about.model, training_file: file.id, suffix: name.value.trim(), ...wanted });
      follow(job);
      clear();
      scrollTo({ top: 0 });
    } catch (error) {
      fill(told, failure(error));
      told.scrollIntoView({ block: "nearest" });
    }
    check();
  }

  function clear() {
    brought = null;
    lastName = "";
    photos.clear();
    others.clear();
    for (const input of [name, noun, looks, steps]) input.value = "";
    facts.set([{}]);
    fill(gift);
    rename();
  }

  const followed = new Set();
  function follow(job) {
    if (followed.has(job.id)) return;
    followed.add(job.id);
    running.prepend(becoming(job, { onclose: () => followed.delete(job.id) }));
  }

  suggest();
  rename();
  return {
    element,
    async show() {
      try {
        const { data } = await api.get("/v1/fine_tuning/jobs?limit=20");
        for (const job of data.reverse()) if (["queued", "running"].includes(job.status)) follow(job);
      } catch (error) {
        fill(told, failure(error));
      }
    },
  };
}
