// Where a turn is written: what kind it is, its words, its picture, and the finer settings.

import { choice, field, fill, fold, h, icon } from "./dom.js";
import { PATHS, toUrl } from "./parts.js";

const KINDS = { ask: "Ask", draw: "Draw", edit: "Edit" };
const REMEMBERING = { unified: "Remember", off: "Nothing" };

export function composer({ about, onsend, onstop }) {
  let kind = "ask";
  let picture = null;
  let isWorking = false;
  const text = h("textarea", { rows: 1, "aria-label": "Your words", maxLength: about.limits.max_text_chars, oninput: grow, onkeydown: keys });
  const hint = h("p", { className: "hint", role: "status", hidden: true });
  const attached = h("div", { className: "attached", hidden: true });
  const input = h("input", { type: "file", accept: "image/*", hidden: true, onchange: () => { take(input.files[0]); input.value = ""; } });
  const add = h("button", { type: "button", className: "round quiet", title: "Add a picture", "aria-label": "Add a picture", onclick: () => input.click() }, icon(PATHS.attach));
  const go = h("button", { type: "submit", className: "round primary", "aria-label": "Send" }, icon(PATHS.send));
  const kinds = choice("What to do", KINDS, { value: kind, shown: false, onchange: set });

  const number = (name, attributes) => h("input", { type: "number", inputMode: "decimal", name, ...attributes });
  const seed = number("seed", { min: 0, step: 1, placeholder: "any" });
  const timesteps = number("num_timesteps", { min: 2, max: 200, step: 1 });
  const guidance = number("cfg_text_scale", { min: 0, max: 20, step: 0.1 });
  const keeping = number("cfg_img_scale", { min: 0, max: 20, step: 0.1, placeholder: "own" });
  const replay = h("select", { name: "replay" }, Object.entries(REMEMBERING).map(([value, label]) => h("option", { value }, label)));
  const drawingOnly = [field("Steps", timesteps), field("Guidance by words", guidance), field("Before drawing", replay)];
  const editingOnly = [field("Guidance by the picture", keeping)];
  const advanced = fold("Advanced", h("div", { className: "options" }, field("Seed", seed), drawingOnly, editingOnly), h("p", { className: "hint" }, "Same words, same seed: same result."));

  const form = h("form", { className: "desk", noValidate: true, onsubmit: (event) => { event.preventDefault(); send(); } },
    attached, text, h("div", { className: "row spread" }, h("div", { className: "row" }, kinds, add), go), input);
  const element = h("div", {
    className: "composer",
    ondrop: (event) => { event.preventDefault(); take([...event.dataTransfer.files].find((file) => file.type.startsWith("image/"))); },
  }, hint, form, advanced);
  form.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    if (file) { event.preventDefault(); take(file); }
  });

  function set(value) {
    kind = value;
    kinds.set(value);
    const defaults = kind === "edit" ? about.editing : about.drawing;
    timesteps.placeholder = defaults.num_timesteps;
    guidance.placeholder = defaults.cfg_text_scale;
    for (const one of drawingOnly) one.hidden = kind === "ask";
    for (const one of editingOnly) one.hidden = kind !== "edit";
    replay.value = kind === "edit" ? "off" : "unified";
    tell(kind === "edit" && !picture ? "Add the picture to change with +, or press “Edit it” under one." : "");
    point();
  }

  let who = [];
  function point(names = who) {
    who = names;
    const name = names.length ? `<${names[0]}>` : "…";
    text.placeholder = { ask: picture ? `Is ${name} in the photo?` : `Where does ${name} live?`, draw: `A photo of ${name} at home.`, edit: `Change the background to the beach.` }[kind];
  }

  function tell(words) {
    hint.textContent = words;
    hint.hidden = !words;
  }

  async function take(file) {
    if (!file) return;
    if (file.size > about.limits.max_image_bytes) return tell("That picture is too large for this server. Make it smaller.");
    if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) return tell("Pictures are read as JPEG, PNG or WebP. Save it as one of these.");
    attach({ url: await toUrl(file), name: file.name });
  }

  function attach(given) {
    picture = given;
    attached.hidden = !given;
    fill(attached, given && [h("img", { src: given.url, alt: "" }), given.name, h("button", { type: "button", className: "quiet slim", "aria-label": "Remove the picture", onclick: () => { attach(null); text.focus(); } }, "×")]);
    set(given && kind === "draw" ? "ask" : kind);
  }

  function grow() {
    text.style.height = "auto";
    text.style.height = `${Math.min(text.scrollHeight, 144)}px`;
  }

  function keys(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches) return;
    event.preventDefault();
    send();
  }

  function settings() {
    const given = { seed: seed.value === "" ? Math.floor(Math.random() * 2 ** 31) : Math.max(0, Math.floor(Number(seed.value))) };
    if (kind === "ask") return given;
    given.replay = replay.value;
    for (const one of kind === "edit" ? [timesteps, guidance, keeping] : [timesteps, guidance]) {
      if (one.value !== "") given[one.name] = Number(one.value);
    }
    return given;
  }

  function send() {
    if (isWorking) return onstop();
    const words = text.value.trim();
    if (!words) return text.focus();
    if (kind === "edit" && !picture) return set("edit");
    onsend({ kind, text: words, picture: kind === "draw" ? null : picture, settings: settings() });
    text.value = "";
    grow();
    if (kind === "edit") attach(null);
    tell("");
    return undefined;
  }

  set(kind);
  return {
    element,
    attach,
    point,
    say(kind_, words) { set(kind_); text.value = words; send(); },
    start(kind_) { set(kind_); text.focus(); },
    working(state) {
      isWorking = state;
      go.setAttribute("aria-label", state ? "Stop" : "Send");
      fill(go, icon(state ? PATHS.stop : PATHS.send));
    },
  };
}
