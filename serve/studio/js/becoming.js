// A concept being learned: its steps, losses, time left, and drawings of what it knows so far.

import * as api from "./api.js";
import { choose } from "./chosen.js";
import { fill, h, named } from "./dom.js";
import { curve, failure, message, pngUrl } from "./parts.js";
import { duration, explained, tidy } from "./words.js";

const RETRY_S = 2;

export function becoming(job, { onclose }) {
  const identifier = job.concept;
  const name = identifier.slice(1, -1);
  const state = h("p", { className: "soft", role: "status" }, "Waiting for its turn…");
  const share = h("span");
  const bar = h("div", { className: "bar waiting", role: "progressbar", "aria-label": `Learning ${identifier}`, "aria-valuemin": 0, "aria-valuemax": 100 }, share);
  const step = h("dd", {}, "–");
  const left = h("dd", {}, "–");
  const losses = h("div", {}, curve(null));
  const strip = h("ol", { className: "strip", tabIndex: 0, "aria-label": `Drawings of ${identifier} while it is learned` });
  const newest = h("div", { className: "picture forming" });
  const newestNote = h("p", { className: "small soft" }, "Its first drawing appears after a few seconds of training.");
  const stop = h("button", { className: "slim", onclick: cancel }, "Stop");
  const actions = h("div", { className: "row" }, stop);
  const close = () => { onclose(); element.remove(); };
  const latest = h("div", { className: "latest" },
    h("figure", { className: "stack tight" }, newest, newestNote),
    h("div", { className: "stack" }, h("dl", { className: "numbers" }, h("div", {}, h("dt", {}, "Step"), step), h("div", {}, h("dt", {}, "Time left"), left)), losses, strip));
  const element = h("section", { className: "card becoming", "aria-label": `Learning ${identifier}` },
    h("div", { className: "row spread" }, h("h2", {}, "Learning ", named(identifier)), actions),
    h("div", { className: "stack tight" }, bar, state),
    latest);
  let over = false;
  let isMine = false;

  function progress({ status, step: now, num_steps: all, left_s: seconds, curve: columns }) {
    const fraction = all ? now / all : 0;
    const isWaiting = now === 0;
    bar.classList.toggle("waiting", isWaiting);
    if (!isWaiting) bar.setAttribute("aria-valuenow", Math.round(fraction * 100));
    share.style.setProperty("--share", fraction);
    step.textContent = `${now} of ${all}`;
    left.textContent = seconds === null || isWaiting ? "–" : `about ${duration(seconds)}`;
    const told = status === "queued" ? "Waiting for its turn…" : isWaiting ? "Preparing the pictures…" : "It looks, reads and draws, again and again.";
    if (state.textContent !== told) state.textContent = told;
    if (columns) fill(losses, curve(columns));
  }

  function drawing({ step: at, prompt, b64_json: data }) {
    const alt = `What it draws for “${prompt}” after ${at} steps`;
    newest.classList.remove("forming");
    fill(newest, h("img", { src: pngUrl(data), alt }));
    newestNote.textContent = `What it draws after ${at} steps.`;
    strip.append(h("li", {}, h("img", { src: pngUrl(data), alt: "" }), `step ${at}`));
    strip.scrollLeft = strip.scrollWidth;
  }

  function end({ status, message: reason }) {
    over = true;
    bar.hidden = true;
    newest.classList.remove("forming");
    state.textContent = "";
    if (status === "succeeded") {
      choose(name);
      dispatchEvent(new CustomEvent("studio:learned"));
      left.textContent = "done";
      fill(actions, h("a", { className: "button primary", href: "#/use" }, "Ask and draw"), h("button", { onclick: close }, "Close"));
      fill(state, message("good", `${identifier} is learned`, "You can ask about it, draw it and edit pictures of it."));
      if (!newest.firstChild) newestNote.textContent = "";
      return;
    }
    fill(actions, h("button", { onclick: close }, "Close"));
    latest.hidden = !newest.firstChild;
    if (status === "cancelled") fill(state, message("warning", ...(isMine ? ["Stopped", "Nothing of it was kept."] : ["Put off, or stopped elsewhere", "A sample gives way to what you teach and is learned afterwards."])));
    else fill(state, failure({ message: tidy(reason) || "The training failed." }), h("p", { className: "small soft" }, "Change what it names and start again; what you uploaded is still there."));
  }

  async function cancel() {
    stop.disabled = true;
    isMine = true;
    // Said before it is asked: that it has stopped may be heard before the answer is, and must stay.
    state.textContent = "Stopping…";
    try {
      await api.post(`/v1/fine_tuning/jobs/${job.id}/cancel`);
    } catch (error) {
      if (over) return;
      state.textContent = explained(error).title;
      isMine = false;
      stop.disabled = false;
    }
  }

  async function watch() {
    while (!over) {
      try {
        await api.stream(`/studio/api/jobs/${job.id}/watch`, {}, (name_, data) => ({ progress, drawing, end })[name_]?.(data));
      } catch (error) {
        if (error.status === 401) return;
        if (error.status === 404) return end({ status: "cancelled" });
        state.textContent = `${explained(error).title}. The training goes on; looking again…`;
      }
      if (!over) await api.untilBack(RETRY_S);
    }
  }

  watch();
  return element;
}
