// What people are told: errors by what they can do about them, times and dates in words.

const TOLD = {
  offline: ["The server does not answer", "Check that it is running and that you are connected. What you wrote and chose is still here."],
  invalid_api_key: ["That key opens nothing here", "Check it for missing letters, or ask whoever runs the server for another."],
  insufficient_permissions: ["Your key does not allow this", "Ask whoever runs the server for a key that does."],
  concept_not_found: ["There is no such concept", "It may have been deleted, or the name is spelled differently. The Look page lists what is there."],
  artifact_unusable: ["This concept does not fit the server's model", "It was learned on another one. Teach it again."],
  not_found: ["That is not there any more", "It may have been deleted meanwhile."],
  too_large: ["That is too large", "Make the picture smaller and try again."],
  unsupported_media_type: ["This kind of file cannot be read", "Save it as JPEG, PNG or WebP."],
  rate_limit_exceeded: ["A little too fast", "Wait a moment, then try again."],
  insufficient_quota: ["You have as much as you may have", "Delete something you no longer need, or wait until a training is over."],
  overloaded: ["The server is busy", "Others are being served. Try again in a moment."],
  store_unavailable: ["The server cannot reach its storage", "Try again in a moment."],
  invalid_concept: ["This cannot be learned yet", "The reasons stand below."],
  internal_error: ["The server made a mistake", "It has been noted in the server's log. Trying again may help."],
};
const BY_STATUS = { 401: "invalid_api_key", 403: "insufficient_permissions", 404: "not_found", 413: "too_large", 415: "unsupported_media_type", 429: "rate_limit_exceeded", 503: "overloaded" };

// {title, advice, detail}: what happened, what to do, and the server's own words.
export function explained(error) {
  const code = TOLD[error.code] ? error.code : BY_STATUS[error.status] ?? (error.status >= 500 ? "internal_error" : undefined);
  const problems = (error.problems ?? []).map((problem) => sentence(problem));
  if (!code) return { title: "That did not work", advice: tidy(error.message), detail: "" };
  const [title, advice] = TOLD[code];
  const wait = error.retryAfter ? ` (${error.retryAfter} s)` : "";
  if (problems.length) return { title, advice: problems.join(" "), detail: "" };
  return { title, advice: advice + wait, detail: code === "offline" ? "" : tidy(error.message ?? "") };
}

function sentence({ what, fix, where }) {
  const told = [where, what].filter(Boolean).join(" ");
  return fix ? `${told}: ${fix}.` : `${told}.`;
}

// The page's own labels for what the server calls by BAGEL's names.
const FIELDS = { cfg_text_scale: "Guidance by words", cfg_img_scale: "Guidance by the picture", num_timesteps: "Steps", "hyperparameters.steps": "Training steps" };

export function tidy(message) {
  const text = (message ?? "").trim().replace(/^([\w.]+)(?=:)/, (name) => FIELDS[name] ?? name);
  return text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

export function duration(seconds) {
  const whole = Math.max(1, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function day(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export function bytes(number) {
  return number < 2 ** 20 ? `${Math.max(1, Math.round(number / 1024))} kB` : `${(number / 2 ** 20).toFixed(1)} MB`;
}

export function several(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}
