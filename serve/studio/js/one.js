// One concept: its photographs, what it remembers when it is asked, its versions, and its end.

import * as api from "./api.js";
import { choose, hand } from "./chosen.js";
import { fill, fold, h, named } from "./dom.js";
import { photoInto, photoPath } from "./look.js";
import { ask, curve, failure, message, toUrl } from "./parts.js";
import { looked } from "./where.js";
import { day, duration, several } from "./words.js";

export function onePage({ about, name }) {
  const body = h("div", {});
  const stop = new AbortController();
  const element = h("div", {}, h("p", { className: "small" }, h("a", { href: "#/look" }, "All concepts")), body);

  async function show() {
    try {
      draw(await api.get(`/studio/api/concepts/${encodeURIComponent(name)}`));
    } catch (error) {
      fill(body, failure(error));
    }
  }

  function draw(concept) {
    const [newest] = concept.versions;
    fill(body,
      h("div", { className: "row spread" },
        h("div", {}, h("h1", {}, named(concept.identifier)), h("p", { className: "lead" }, newest.info ? named(newest.info) : concept.class_noun)),
        h("a", { className: "button primary", href: "#/use", onclick: () => choose(name) }, "Ask and draw")),
      h("div", { className: "one" }, photos(newest), memory(newest), history(concept), end(concept)));
  }

  function photos(version) {
    const viewer = h("div", { className: "viewer" });
    const album = h("ul", { className: "album" }, Array.from({ length: version.num_photos }, (_, number) => {
      const image = h("img", { alt: `Photo ${number + 1} of ${version.num_photos}` });
      photoInto(image, photoPath(name, version.version, number));
      const button = h("button", { "aria-pressed": "false", onclick: () => open(button, async () => {
        const file = await api.blob(`${photoPath(name, version.version, number)}?whole=true`);
        return { url: await toUrl(file), name: `${name} ${number + 1}.png` };
      }) }, h("span", { className: "thumb" }, image));
      return h("li", {}, button);
    }));
    const input = h("input", { type: "file", accept: "image/png, image/jpeg, image/webp", hidden: true, onchange: () => {
      const [file] = input.files;
      if (file) open(null, async () => ({ url: await toUrl(file), name: file.name }));
      input.value = "";
    } });

    async function open(button, read) {
      for (const one of album.querySelectorAll("button")) one.setAttribute("aria-pressed", String(one === button));
      try {
        const picture = await read();
        fill(viewer, view(picture));
      } catch (error) {
        fill(viewer, failure(error));
      }
    }

    return h("section", {}, h("h2", {}, "Photos it was taught with"),
      version.num_photos ? album : h("p", { className: "soft" }, "They are not kept on this server."),
      h("div", { className: "row" }, h("p", { className: "hint" }, "Choose one to see where ", named(`<${name}>`), " looks, to ask about it or to edit it."),
        h("button", { className: "slim", onclick: () => input.click() }, "Another picture"), input), viewer);
  }

  function view(picture) {
    const take = (kind) => () => { hand({ ...picture, kind }); choose(name); location.hash = "#/use"; };
    return h("div", { className: "stack" }, looked({ name, picture, signal: stop.signal }),
      h("div", { className: "row" }, h("button", { className: "slim", onclick: take("ask") }, "Ask about it"), h("button", { className: "slim", onclick: take("edit") }, "Edit it")));
  }

  function memory(version) {
    const asked = version.questions.filter((one, index, all) => all.findIndex((other) => other.answer === one.answer) === index).slice(0, 8);
    const questions = asked.length ? asked : [{ question: `What do you know about <${name}>?`, answer: "" }];
    const list = h("ul", { className: "memory" });
    const button = h("button", { onclick: recall }, "Ask it");

    async function recall() {
      button.disabled = true;
      fill(list);
      for (const { question, answer } of questions) {
        const heard = h("p", { className: "heard" });
        list.append(h("li", {}, h("p", { className: "small soft" }, named(question)), heard, answer && h("p", { className: "small soft" }, "Taught: ", named(answer))));
        try {
          let text = "";
          const json = { model: about.model, concepts: [name], messages: [{ role: "user", content: question }], stream: true };
          await api.stream("/v1/chat/completions", { method: "POST", json, signal: stop.signal }, (_, { choices }) => {
            text += choices[0]?.delta?.content ?? "";
            fill(heard, named(text));
          });
        } catch (error) {
          if (error.name === "AbortError") return;
          fill(heard, failure(error));
          break;
        }
      }
      button.disabled = false;
      fill(button, "Ask it again");
    }

    return h("section", {}, h("h2", {}, "What it remembers"), h("p", { className: "soft" }, "Asked without any picture: what it says comes from its soft tokens alone."), h("div", {}, button), list);
  }

  function history(concept) {
    const items = concept.versions.map((version, index) => h("li", { className: "card" },
      h("div", { className: "row spread" }, h("h3", {}, day(version.created_at), index ? "" : " (in use)"), h("code", { className: "small soft" }, version.version.slice(0, 12))),
      h("p", { className: "small soft" }, `${several(version.steps ?? 0, "step")}, learned in ${duration(version.train_s ?? 0)}, ${several(version.num_photos, "photo")}, ${several(version.facts.length, "fact")}`),
      version.is_usable ? null : message("warning", "For another model", "It was learned on a model that this server does not run."),
      version.warnings.map((text) => h("p", { className: "small soft" }, text)),
      fold("How it went", curve(version.losses), version.facts.length ? h("ul", { className: "small soft" }, version.facts.map((fact) => h("li", {}, named(fact)))) : null)));
    return h("section", {}, h("h2", {}, several(concept.versions.length, "version")), h("ul", { className: "versions" }, items));
  }

  function end(concept) {
    const { versions, jobs, pictures } = concept.erases;
    const files = h("input", { type: "checkbox", checked: true });
    const told = h("div", {});
    const erase = async () => {
      const what = h("div", { className: "stack" }, h("p", {}, "This cannot be undone. It erases:"),
        h("ul", { className: "plain" }, h("li", {}, `${several(versions, "learned version")} of ${concept.identifier}`), h("li", {}, `${several(jobs, "record")} of its training`), h("li", {}, `${several(pictures, "copy", "copies")} of pictures it was taught with`)),
        h("label", { className: "check" }, files, "Also the photos and facts as you uploaded them"));
      if (!(await ask(`Erase ${concept.identifier}?`, what, { yes: "Erase it", danger: true }))) return;
      try {
        // What was uploaded is named by the documents, which go last.
        const uploads = files.checked ? await uploaded(concept) : [];
        await api.remove(`/v1/concepts/${encodeURIComponent(name)}`);
        fill(told, h("p", { className: "soft", role: "status" }, "Erasing…"));
        let left = 0;
        await api.each(uploads, (id) => api.remove(`/v1/files/${id}`).catch((error) => { if (error.status !== 404) left += 1; }));
        if (!left) location.hash = "#/look";
        else fill(told, message("warning", `${concept.identifier} is erased, ${several(left, "upload")} not`, `The server did not let go of ${left} of the ${uploads.length} pictures and facts as you uploaded them. They stay among your files until you delete them there.`));
      } catch (error) {
        fill(told, failure(error));
      }
    };
    return h("section", {}, h("h2", {}, "Erase it"), h("p", { className: "soft" }, "Every version, the record of its training and the copies of its pictures."), h("div", {}, h("button", { className: "danger", onclick: erase }, `Erase ${concept.identifier}…`)), told);
  }

  async function uploaded(concept) {
    const ids = new Set();
    for (const { training_file: file } of concept.versions) {
      if (!file) continue;
      try {
        const document_ = await api.get(`/v1/files/${file}/content`);
        const edits = (document_.edits ?? []).flatMap((edit) => [edit.source, edit.target]);
        for (const id of [...document_.photos, ...(document_.negatives ?? []), ...edits, file]) ids.add(id);
      } catch { /* deleted before */ }
    }
    return [...ids];
  }

  return { element, show, hide: () => stop.abort() };
}
