// Talks to the server this page came from, and to nobody else.

const ROOT = new URL("../..", import.meta.url).pathname.replace(/\/$/, "");
const KEY = "omnifarm-key";
const PATIENCE = 3;
const AT_ONCE = 4;

export class ApiError extends Error {
  constructor(status, { message = "", code = "", retryAfter = 0, problems = [] } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter, problems });
  }
}

export const offline = () => new ApiError(0, { code: "offline" });
export const key = () => sessionStorage.getItem(KEY) ?? "";
export const keep = (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY));
export const origin = () => location.origin + ROOT;

async function reach(path, { method = "GET", json, form, signal } = {}) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let reply;
  try {
    reply = await fetch(ROOT + path, { method, headers, signal, body: json === undefined ? form : JSON.stringify(json), credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    dispatchEvent(new CustomEvent("studio:offline"));
    throw offline();
  }
  if (reply.ok) return reply;
  throw await refusal(reply);
}

async function refusal(reply) {
  let body = {};
  try {
    body = (await reply.json()).error ?? {};
  } catch { /* A proxy's own page: the status says enough. */ }
  const error = new ApiError(reply.status, { ...body, retryAfter: Number(reply.headers.get("Retry-After")) || 0 });
  if (reply.status === 401) dispatchEvent(new CustomEvent("studio:locked"));
  return error;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, seconds * 1000));

// Does work(item) for every item, a few at a time: a server lets only so many requests in at once.
export async function each(items, work) {
  const line = [...items];
  await Promise.all(Array.from({ length: AT_ONCE }, async () => {
    while (line.length) await work(line.shift());
  }));
}

// Behind a 429 the server has done nothing: any request may be sent again. Behind a 503 it may have done something, so
// only what asks for the same thing however often is sent again.
const HASTE = [429];
const BUSY = [429, 503];

async function patiently(path, options, soon = BUSY) {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await reach(path, options);
    } catch (error) {
      const passes = soon.includes(error.status) && error.code !== "insufficient_quota" && error.retryAfter <= 5;
      if (!passes || attempt === PATIENCE) throw error;
      await pause(error.retryAfter || 1);
    }
  }
}

export const get = async (path, options) => (await patiently(path, options)).json();
export const blob = async (path, options) => (await patiently(path, options)).blob();
export const post = async (path, json, options) => (await patiently(path, { method: "POST", json, ...options }, HASTE)).json();
export const submit = async (path, form, options) => (await patiently(path, { method: "POST", form, ...options })).json();
export const remove = async (path) => (await patiently(path, { method: "DELETE" })).json();

export async function upload(file, purpose, name = file.name) {
  const form = new FormData();
  form.append("purpose", purpose);
  form.append("file", file, name);
  return submit("/v1/files", form);
}

// Calls onevent(name, data) for each server-sent event; resolves when the stream is over.
export async function stream(path, options, onevent) {
  const reply = await patiently(path, options, HASTE);
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) tell(part, onevent);
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw offline();
  }
}

function tell(part, onevent) {
  let name = "message";
  let data = "";
  for (const line of part.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data += line.slice(6);
  }
  if (!data || data === "[DONE]") return;
  const value = JSON.parse(data);
  if (value.error) throw new ApiError(500, value.error);
  onevent(name, value);
}

// Resolves when the server answers again.
export async function untilBack(seconds = 2) {
  for (;;) {
    await pause(seconds);
    try {
      if ((await fetch(`${ROOT}/health`, { cache: "no-store" })).ok) return;
    } catch { /* not yet */ }
  }
}
