// Look: a gallery of what was learned.

import * as api from "./api.js";
import { fill, h, named } from "./dom.js";
import { failure } from "./parts.js";
import { scoresList } from "./scores.js";
import { day } from "./words.js";

export function photoPath(name, version, number) {
  return `/studio/api/concepts/${name}/versions/${version}/photos/${number}`;
}

// An <img> cannot show a key, so a photograph is fetched and handed over as an object URL.
export async function photoInto(image, path) {
  try {
    const url = URL.createObjectURL(await api.blob(path));
    image.onload = () => URL.revokeObjectURL(url);
    image.src = url;
  } catch {
    image.replaceWith(h("span", { className: "unseen" }, "This photo is not kept here."));
  }
}

export function lookPage() {
  const body = h("div", {});
  const scores = scoresList();
  const element = h("div", {}, h("h1", {}, "What it has learned"), body, scores.element);

  async function show() {
    scores.show();
    try {
      const { data } = await api.get("/v1/concepts");
      fill(body, data.length ? h("ul", { className: "gallery" }, data.map(card)) : h("p", { className: "lead" }, "Nothing yet. ", h("a", { href: "#/teach" }, "Teach it something of yours.")));
    } catch (error) {
      fill(body, failure(error, { again: show }));
    }
  }

  function card(concept) {
    const image = h("img", { alt: "" });
    const sight = new IntersectionObserver(([entry]) => {
      if (!entry.isIntersecting) return;
      sight.disconnect();
      photoInto(image, photoPath(concept.name, concept.version, 0));
    });
    sight.observe(image.parentElement ?? image);
    return h("li", {}, h("a", { href: `#/look/${encodeURIComponent(concept.name)}` },
      h("div", { className: "thumb" }, image),
      h("div", { className: "about" }, h("span", {}, named(concept.identifier)), h("span", { className: "small soft" }, `${concept.class_noun} · ${day(concept.created_at)}`))));
  }

  return { element, show };
}
