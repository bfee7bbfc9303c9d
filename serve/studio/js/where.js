// Where an identifier looks in a picture: the less it attends to a place, the darker the place becomes.

import * as api from "./api.js";
import { fill, h, named } from "./dom.js";
import { failure, fromUrl } from "./parts.js";

const VEIL = [10, 16, 12];
const DARKEST = 0.82;

// Above this share of all patches a patch is as bright as can be: a few stand out so far that the rest would drown.
const BRIGHT_FROM = 0.92;

// How bright each patch is, from 0 to 1, when the page is given the patches' shares of the attention.
function brightness(shares) {
  const sorted = shares.flat().sort((one, other) => one - other);
  const [low, high] = [sorted[0], sorted[Math.floor(BRIGHT_FROM * (sorted.length - 1))]];
  return shares.map((row) => row.map((share) => Math.min(1, (share - low) / (high - low || 1))));
}

function veil(bright) {
  const [rows, columns] = [bright.length, bright[0].length];
  const canvas = h("canvas", { width: columns, height: rows, "aria-hidden": "true" });
  const pixels = new ImageData(columns, rows);
  bright.flat().forEach((light, index) => pixels.data.set([...VEIL, Math.round(255 * DARKEST * (1 - light))], 4 * index));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

const THIRDS = [["upper", "middle", "lower"], ["left", "centre", "right"]];

// For who does not see the picture: the place that gets most.
function place(shares) {
  const [rows, columns] = [shares.length, shares[0].length];
  const most = shares.flat().indexOf(Math.max(...shares.flat()));
  const [y, x] = [Math.floor((3 * Math.floor(most / columns)) / rows), Math.floor((3 * (most % columns)) / columns)];
  return y === 1 && x === 1 ? "the centre" : `the ${THIRDS[0][y]} ${THIRDS[1][x]}`;
}

// The picture {url, name} with what <name> attends to laid over it; asks the server when it is made.
export function looked({ name, picture, signal }) {
  const frame = h("div", { className: "picture where" }, h("img", { src: picture.url, alt: picture.name }));
  const told = h("div", { role: "status" }, h("p", { className: "small soft" }, "Looking…"));
  const element = h("figure", { className: "stack tight" }, frame, told);

  async function look() {
    try {
      const form = new FormData();
      form.append("image", await fromUrl(picture.url), picture.name);
      const { shares } = await api.submit(`/studio/api/concepts/${encodeURIComponent(name)}/looking`, form, { signal });
      frame.append(veil(brightness(shares)));
      const who = named(`<${name}>`);
      fill(told, h("p", { className: "small soft" }, "The brighter a place, the more ", who, " looks at it in “Is ", named(`<${name}>`), ` in the photo?”; most of all at ${place(shares)}.`));
      element.scrollIntoView({ block: "nearest" });
    } catch (error) {
      if (error.name !== "AbortError") fill(told, failure(error, { again: look }));
    }
  }

  look();
  return element;
}
