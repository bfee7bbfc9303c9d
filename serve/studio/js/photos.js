// Photographs somebody dropped: each is looked at here at once, then by the server, and says what is wrong with it.

import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { fromUrl } from "./parts.js";
import { bytes, explained } from "./words.js";

const FOREIGN = [
  ["GIF8", "a GIF"], ["BM", "a BMP"], ["II*", "a TIFF"], ["MM", "a TIFF"], ["%PDF", "a PDF"], ["<svg", "an SVG"], ["<?xml", "an SVG"],
];

// {kind} of a readable file, or {fault} in words.
async function kindOf(file) {
  const head = new Uint8Array(await file.slice(0, 16).arrayBuffer());
  const text = String.fromCharCode(...head);
  if (!head.length) return { fault: "The file is empty." };
  if (text.startsWith("\x89PNG") || text.startsWith("\xff\xd8\xff") || (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP")) return {};
  const phone = text.slice(4, 8) === "ftyp" && (text.slice(8, 12) === "avif" ? "an AVIF" : "a HEIC");
  const found = phone || FOREIGN.find(([magic]) => text.startsWith(magic))?.[1];
  return { fault: `This is ${found ?? "not a picture"}. Save it as JPEG, PNG or WebP.` };
}

async function faultOf(file, limits) {
  const { fault } = await kindOf(file);
  if (fault) return fault;
  if (file.size > limits.max_image_bytes) return `${bytes(file.size)}: at most ${bytes(limits.max_image_bytes)} are read. Make it smaller.`;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return "The file is damaged. Open it in a viewer and save it again.";
  }
  const { width, height } = bitmap;
  bitmap.close();
  const [short, long] = [Math.min(width, height), Math.max(width, height)];
  if (short < limits.min_side) return `Too small: ${width}×${height}, at least ${limits.min_side} pixels a side.`;
  if (width * height > limits.max_pixels) return `Too large: ${width}×${height} pixels. Make it smaller.`;
  if (long > short * limits.max_aspect) return `Too narrow: ${width}×${height}. Crop it.`;
  return "";
}

async function digestOf(file) {
  if (!crypto.subtle) return `${file.name}:${file.size}`;
  return new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer())).join();
}

// A place to drop photographs. `photos` are {file, url, state, words, id?, key?}; ready ones can be learned from.
export function photoField({ about, title, hint, onchange }) {
  const photos = [];
  const list = h("ul", { className: "photos", "aria-label": title });
  const told = h("p", { className: "unseen", role: "status" });
  const input = h("input", { type: "file", accept: "image/*", multiple: true, className: "unseen", onchange: () => { add([...input.files]); input.value = ""; } });
  const drop = h("label", {
    className: "drop",
    ondragover: () => drop.classList.add("over"),
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); add([...event.dataTransfer.files]); },
  }, input, h("strong", {}, title), h("span", { className: "hint" }, hint));
  const element = h("div", { className: "stack" }, drop, list, told);

  function draw() {
    fill(list, photos.map((photo) => photo.item));
    onchange();
  }

  function update(photo, state, words = "") {
    Object.assign(photo, { state, words });
    photo.item.className = state === "refused" ? "refused" : "";
    photo.note.textContent = words;
    if (state === "refused") told.textContent = `${photo.name}: ${words}`;
    onchange();
  }

  function drop_(photo) {
    const index = photos.indexOf(photo);
    if (index < 0) return;
    photos.splice(index, 1);
    if (photo.url.startsWith("blob:")) URL.revokeObjectURL(photo.url);
    if (photo.id) api.remove(`/v1/files/${photo.id}`).catch(() => {});
    draw();
    (list.querySelectorAll("button")[index] ?? input).focus();
  }

  function make(file, name, url, key) {
    const photo = { file, name, url, key, state: "checking" };
    const picture = h("img", { src: url, alt: name, onerror: () => picture.replaceWith(h("span", { className: "none", "aria-hidden": "true" }, "?")) });
    photo.note = h("span", {}, "Looking…");
    photo.item = h("li", {}, h("div", { className: "thumb" }, picture, h("button", { type: "button", "aria-label": `Remove ${name}`, onclick: () => drop_(photo) }, "×")), photo.note);
    return photo;
  }

  async function add(files) {
    const added = files.map((file) => make(file, file.name, URL.createObjectURL(file)));
    photos.push(...added);
    draw();
    for (const photo of added) await check(photo);
  }

  async function check(photo) {
    const fault = await faultOf(photo.file, about.limits);
    if (fault) return update(photo, "refused", fault);
    photo.digest = await digestOf(photo.file);
    const twin = photos.find((other) => other !== photo && other.digest === photo.digest);
    if (twin) return update(photo, "refused", "The same picture is here already.");
    return send(photo);
  }

  async function send(photo) {
    update(photo, "sending", "Sending…");
    try {
      photo.id = (await api.upload(photo.file, "vision", photo.name)).id;
      // Taken out while it was on its way.
      if (!photos.includes(photo)) api.remove(`/v1/files/${photo.id}`).catch(() => {});
      update(photo, "ready", "");
    } catch (error) {
      const { title, advice, detail } = explained(error);
      const isTheirs = error.status >= 400 && error.status < 500 && error.status !== 429;
      update(photo, isTheirs ? "refused" : "unsent", isTheirs ? detail || advice : `${title}. It is sent again when you start.`);
    }
  }

  return {
    element,
    photos,
    // Pictures that are known to be good: {key, name, url}.
    async give(given) {
      photos.length = 0;
      for (const { key, name, url } of given) {
        const photo = make(await fromUrl(url), name, url, key);
        photos.push(photo);
        update(photo, "ready", "");
      }
      draw();
    },
    clear() { photos.length = 0; draw(); },
    usable: () => photos.filter((photo) => photo.state !== "refused"),
    isBusy: () => photos.some((photo) => photo.state === "checking" || photo.state === "sending"),
  };
}
