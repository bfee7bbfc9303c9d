// Which concepts are being talked with; remembered while the tab is open.

const KEY = "omnifarm-chosen";
const names = new Set(JSON.parse(sessionStorage.getItem(KEY) ?? "[]"));

const save = () => sessionStorage.setItem(KEY, JSON.stringify([...names]));

export const chosen = () => [...names];

// From now on this one alone.
export function choose(name) {
  names.clear();
  names.add(name);
  save();
}

export function toggle(name) {
  if (!names.delete(name)) names.add(name);
  save();
}

// Drops what is not there any more, and chooses the first when there is a first and nothing else.
export function settle(known) {
  for (const name of names) if (!known.includes(name)) names.delete(name);
  if (!names.size && known.length) names.add(known[0]);
  save();
}

let picture = null;

// A picture on its way from one page to another: {url, name, kind}, for asking about or editing it.
export const hand = (given) => { picture = given; };
export const handed = () => { const given = picture; picture = null; return given; };
