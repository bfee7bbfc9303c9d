// How a result was made, and how to make it again: a JSON file, a curl line, a few lines of Python.

import { key, origin } from "./api.js";

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
const KINDS = { "image/jpeg": "jpg", "image/webp": "webp" };

// The picture a request came with, as a file name.
export function inputName(given) {
  return `input.${KINDS[given.url.slice(5).split(";")[0]] ?? "png"}`;
}

export function curl({ kind, path, body, given }) {
  const login = key() ? ` -H "Authorization: Bearer $OMNIFARM_KEY"` : "";
  const url = `${origin()}${path}`;
  const saved = ` |\n  python3 -c 'import base64, json, sys; open("picture.png", "wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))'`;
  if (kind === "edit") {
    const parts = Object.entries(body).flatMap(([name, value]) => [value].flat().map((one) => `-F ${quoted(`${name}${Array.isArray(value) ? "[]" : ""}=${one}`)}`));
    return `curl -s ${url}${login} \\\n  -F image=@${inputName(given)} ${parts.join(" ")}${saved}`;
  }
  if (kind === "ask" && given) {
    // The picture goes in from its file, so that the line stays a line.
    const [before, after] = JSON.stringify(body).split(given.url);
    const head = given.url.split(",")[0];
    return `{ printf %s ${quoted(`${before}${head},`)}; base64 < ${inputName(given)} | tr -d '\\n'; printf %s ${quoted(after)}; } |\n  curl -s ${url}${login} -H 'Content-Type: application/json' -d @-`;
  }
  return `curl -s ${url}${login} -H 'Content-Type: application/json' \\\n  -d ${quoted(JSON.stringify(body))}${kind === "draw" ? saved : ""}`;
}

export function python({ kind, body, given }) {
  const secret = key() ? `os.environ["OMNIFARM_KEY"]` : `"none"`;
  const lines = [given || kind !== "ask" ? "import base64" : "", key() ? "import os" : "", "from openai import OpenAI", "", `client = OpenAI(base_url=${JSON.stringify(`${origin()}/v1`)}, api_key=${secret})`];
  if (kind === "ask") {
    const { model, seed, messages, ...extra } = body;
    let said = JSON.stringify(messages);
    if (given) {
      lines.push(`picture = base64.b64encode(open(${JSON.stringify(inputName(given))}, "rb").read()).decode()`);
      const [before, after] = said.split(JSON.stringify(given.url));
      said = `${before}${JSON.stringify(`${given.url.split(",")[0]},`)} + picture${after}`;
    }
    lines.push(`reply = client.chat.completions.create(model=${JSON.stringify(model)}, seed=${seed}, messages=${said}, extra_body=${JSON.stringify(extra)})`, "print(reply.choices[0].message.content)");
  } else {
    const { model, prompt, ...extra } = body;
    const call = kind === "draw" ? "generate(" : `edit(image=open(${JSON.stringify(inputName(given))}, "rb"), `;
    lines.push(`reply = client.images.${call}model=${JSON.stringify(model)}, prompt=${JSON.stringify(prompt)}, extra_body=${JSON.stringify(extra)})`, `open("picture.png", "wb").write(base64.b64decode(reply.data[0].b64_json))`);
  }
  return lines.filter((line, index) => line || index > 2).join("\n");
}

async function digest(url) {
  if (!url || !crypto.subtle) return undefined;
  const letters = atob(url.split(",")[1]);
  const hash = await crypto.subtle.digest("SHA-256", Uint8Array.from(letters, (letter) => letter.charCodeAt(0)));
  return [...new Uint8Array(hash)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Everything the result follows from. The picture it came with is inside; the key is not.
export async function recipe({ wanted, path, body, result, made }) {
  const given = wanted.kind === "draw" ? null : wanted.picture;
  return JSON.stringify({
    schema_version: 1,
    made_at: new Date().toISOString(),
    server: { url: origin(), backbone: wanted.about.backbone, fingerprint: wanted.about.fingerprint },
    concepts: wanted.concepts.map(({ identifier, version }) => ({ identifier, version })),
    request: { method: "POST", path, encoding: wanted.kind === "edit" ? "multipart/form-data" : "application/json", body },
    picture: wanted.kind === "edit" ? given.url : undefined,
    result: { ...result, picture_sha256: await digest(made?.url) },
  }, null, 2);
}
