// Builds elements. Text goes in as text: nothing a user or a model writes is ever parsed as markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !["list", "form"].includes(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  fill(element, ...children);
  return element;
}

export function fill(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(path) {
  const drawn = svg("path", { d: path, fill: "none", stroke: "currentColor", "stroke-width": 2, "stroke-linecap": "round", "stroke-linejoin": "round" });
  return svg("svg", { viewBox: "0 0 24 24", width: 20, height: 20, "aria-hidden": "true" }, drawn);
}

// A text in which identifiers (<maeve>) stand out.
export function named(text) {
  return text.split(/(<[A-Za-z0-9][A-Za-z0-9_-]{0,63}>)/).map((part, index) => (index % 2 ? h("span", { className: "id" }, part) : part));
}

let count = 0;

export function field(label, input, { hint } = {}) {
  input.id ||= `f${(count += 1)}`;
  const note = h("p", { className: "hint", id: `${input.id}-hint`, hidden: !hint }, hint ?? "");
  const fault = h("p", { className: "fault", id: `${input.id}-fault`, hidden: true });
  input.setAttribute("aria-describedby", `${note.id} ${fault.id}`);
  const box = h("div", { className: "field" }, h("label", { htmlFor: input.id }, label), input, note, fault);
  box.say = (problem) => {
    fault.textContent = problem ?? "";
    fault.hidden = !problem;
    input.setAttribute("aria-invalid", problem ? "true" : "false");
  };
  return box;
}

// A row of radio buttons; `choices` maps values to labels.
export function choice(legend, choices, { value, onchange, shown = true }) {
  const group = `c${(count += 1)}`;
  const buttons = Object.entries(choices).map(([key, label]) =>
    h("label", {}, h("input", { type: "radio", name: group, value: key, checked: key === value, onchange: () => onchange(key) }), label));
  const box = h("fieldset", { className: "field" }, h("legend", { className: shown ? "" : "unseen" }, legend), h("div", { className: "choices" }, buttons));
  box.set = (key) => { for (const button of box.querySelectorAll("input")) button.checked = button.value === key; };
  return box;
}

export function fold(summary, ...children) {
  return h("details", { className: "fold" }, h("summary", {}, summary), ...children);
}
