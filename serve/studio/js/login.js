// Where a tenant's key is asked for. It stays in this tab and goes to this server only.

import * as api from "./api.js";
import { field, fill, h } from "./dom.js";
import { failure } from "./parts.js";

export function loginPage({ onenter }) {
  const input = h("input", { type: "password", autocomplete: "current-password", spellcheck: false, required: true, placeholder: "omf_…", name: "key" });
  const box = field("Your key", input, { hint: "Whoever runs the server made it with `omnifarm tenant create`. It is kept in this tab only." });
  const told = h("div", { className: "told" });
  const button = h("button", { className: "primary", type: "submit" }, "Enter");
  const form = h("form", {
    className: "login",
    onsubmit: async (event) => {
      event.preventDefault();
      box.say(input.value.trim() ? "" : "Paste your key first.");
      if (!input.value.trim()) return;
      button.disabled = true;
      fill(told);
      api.keep(input.value.trim());
      try {
        await api.get("/v1/concepts");
        await onenter();
      } catch (error) {
        // The frame draws this page anew after a refusal; the message belongs to whichever is shown.
        queueMicrotask(() => fill(document.querySelector(".login .told") ?? told, failure(error)));
      }
      button.disabled = false;
    },
  }, h("h1", {}, "Come in"), h("p", { className: "lead" }, "This studio shows you your own concepts and nobody else's."), box, told, h("div", {}, button));
  return form;
}
