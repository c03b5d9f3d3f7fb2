/* Scenarios as links, and the checks that a link from anybody must pass. */

import { CHOICES, DEFAULTS, KNOBS, LIMITS, MAX_CHARACTERS, OPTIONAL_KNOBS, RELEASES, ROWS, ROWS_KNOBS, SHARE_KNOBS, SINCE } from "./limits.js";
import { REQUEST_ID, REQUEST_KEYS, SCENARIO_KEYS, SCENARIO_NAME, SCENARIO_VERSION } from "./limits.js";

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

const shown = (value) => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
};

/** What is wrong with an integer, as a message; null: nothing. */
export const integerProblem = (name, value) => {
  const [low, high] = LIMITS[name];
  if (!Number.isInteger(value)) return `${name} must be an integer, got ${shown(value)}`;
  if (value < low || value > high) return `${name} must lie in ${low} to ${high}, got ${value}`;
  return null;
};

/** Whether a value is a list of rows of three numbers. */
const areRows = (value) => {
  const [low, high] = LIMITS.max_num_seqs;
  const fits = (number) => Number.isInteger(number) && number >= low - 1 && number <= high;
  const isRow = (row) => Array.isArray(row) && row.length === 3 && row.every(fits);
  return Array.isArray(value) && value.length <= high && value.every(isRow);
};

/** What is wrong with rows (from, to, tokens) that are numbers, as a message; null: nothing. */
const rowsProblem = (rows) => {
  const sorted = [...rows].sort(([one], [other]) => one - other);
  if (sorted.length === 0 || sorted[0][0] !== 1) return "needs a row that begins at 1";
  if (sorted.some(([from, to]) => to < from)) return "has a row whose end is before its start";
  return sorted.some(([from], i) => i > 0 && from <= sorted[i - 1][1]) ? "has two rows that overlap" : null;
};

/** What is wrong with a knob's value, as a message; null: nothing. */
export const knobProblem = (name, value) => {
  if (OPTIONAL_KNOBS.includes(name) && value === null) return null;
  if (name in LIMITS) return integerProblem(name, value);
  if (SHARE_KNOBS.includes(name)) {
    const fits = typeof value === "number" && value >= 0 && value < 1;
    return fits ? null : `${name} must lie in 0 to below 1, got ${shown(value)}`;
  }
  if (ROWS_KNOBS.includes(name)) {
    return value === null || areRows(value) ? null : `${name} must be ${ROWS}, got ${shown(value)}`;
  }
  if (name in CHOICES) {
    if (CHOICES[name].includes(value)) return null;
    return `${name} must be one of ${CHOICES[name].map(String).join(", ")}; got ${shown(value)}`;
  }
  return typeof value === "boolean" ? null : `${name} must be true or false, got ${shown(value)}`;
};

/** What is wrong with knobs that are valid alone, as [name, message] pairs. */
const knobsTogether = (config) => {
  const { vllm_version: version, max_num_active_seqs: active, max_num_seqs: most } = { ...DEFAULTS, ...config };
  const problems = Object.entries(SINCE)
    .filter(([name, since]) => (config[name] ?? DEFAULTS[name]) !== DEFAULTS[name] && RELEASES.indexOf(version) < RELEASES.indexOf(since))
    .map(([name, since]) => [name, `does nothing in vLLM ${version}: the knob came with ${since}`]);
  if (active !== null && active > most) problems.push(["max_num_active_seqs", `must be at most max_num_seqs=${most}, got ${active}`]);
  const { num_speculative_tokens: drafts, num_lookahead_tokens: slots, max_num_batched_tokens: budget } = { ...DEFAULTS, ...config };
  const { num_speculative_tokens_per_batch_size: rows } = { ...DEFAULTS, ...config };
  if (rows !== null) {
    const problem = drafts ? rowsProblem(rows) : "does nothing: num_speculative_tokens is 0";
    if (problem) problems.push(["num_speculative_tokens_per_batch_size", problem]);
  }
  if (slots > drafts) problems.push(["num_lookahead_tokens", `must be at most num_speculative_tokens=${drafts}, got ${slots}`]);
  if (budget <= drafts) problems.push(["max_num_batched_tokens", `has no room for a token and num_speculative_tokens=${drafts}`]);
  const isOld = RELEASES.indexOf(version) < RELEASES.indexOf("0.28.0"); // a token for each place in the batch
  if (slots && isOld && budget <= most) problems.push(["max_num_batched_tokens", `must be above max_num_seqs=${most} here`]);
  return problems;
};

/** Collects the problems of an untrusted object. */
class Checker {
  /** @type {{field: string, message: string}[]} */
  errors = [];

  note(field, message) {
    if (message) this.errors.push({ field, message });
  }

  keys(data, field, known) {
    if (!isObject(data)) {
      this.note(field, `must be an object, got ${shown(data)}`);
      return {};
    }
    for (const key of Object.keys(data)) {
      if (!known.includes(key)) this.note(field ? `${field}.${key}` : key, "unknown key");
    }
    return data;
  }

  integers(row, field, names) {
    for (const name of names) {
      if (row[name] !== undefined) this.note(`${field}${name}`, integerProblem(name, row[name]));
    }
  }

  text(value, field, pattern) {
    const good = typeof value === "string" && pattern.test(value);
    this.note(field, good ? null : `must match ${pattern.source}, got ${shown(value)}`);
  }

  tokens(value, field) {
    const [low, high] = LIMITS.num_prompt_tokens;
    if (!Array.isArray(value) || value.length < low || value.length > high) {
      this.note(field, `must be a list of ${low} to ${high} token ids`);
    } else if (value.some((token) => integerProblem("token_id", token))) {
      this.note(field, `every token id must be an integer from 0 to ${LIMITS.token_id[1]}`);
    }
  }

  /** @returns {number} prompt tokens */
  request(data, field) {
    const row = this.keys(data, field, REQUEST_KEYS);
    this.text(row.request_id, `${field}.request_id`, REQUEST_ID);
    this.integers(row, `${field}.`, ["arrival_step", "max_tokens", "min_tokens", "priority"]);
    if (row.arrival_time != null) this.integers(row, `${field}.`, ["arrival_time"]);
    if ((row.min_tokens ?? 0) > (row.max_tokens ?? 16)) this.note(`${field}.min_tokens`, "must be at most max_tokens");
    if (row.prompt_token_ids !== undefined) {
      this.tokens(row.prompt_token_ids, `${field}.prompt_token_ids`);
      return row.prompt_token_ids?.length ?? 0;
    }
    const length = row.num_prompt_tokens;
    this.note(`${field}.num_prompt_tokens`, integerProblem("num_prompt_tokens", length));
    if (row.prefix_group != null) {
      this.text(row.prefix_group, `${field}.prefix_group`, REQUEST_ID);
    }
    const prefix = row.num_prefix_tokens ?? 0;
    if (!Number.isInteger(prefix) || prefix < 0 || prefix > length) {
      this.note(`${field}.num_prefix_tokens`, `must lie in 0 to num_prompt_tokens, got ${shown(prefix)}`);
    } else if (prefix > 0 !== (row.prefix_group != null)) {
      this.note(`${field}.num_prefix_tokens`, "goes together with prefix_group");
    }
    return Number.isInteger(length) ? length : 0;
  }

  requests(rows) {
    const [, most] = LIMITS.requests;
    if (!Array.isArray(rows) || rows.length > most) {
      this.note("requests", `must be a list of at most ${most} requests`);
      return;
    }
    const tokens = rows.reduce((sum, row, i) => sum + this.request(row, `requests[${i}]`), 0);
    if (tokens > LIMITS.all_prompt_tokens[1]) {
      this.note("requests", `all prompts together have ${tokens} tokens; the limit is ${LIMITS.all_prompt_tokens[1]}`);
    }
    const ids = rows.map((row) => row?.request_id);
    const twice = ids.find((id, i) => ids.indexOf(id) !== i);
    if (twice !== undefined) this.note("requests", `${shown(twice)} is the id of two requests`);
  }
}

/**
 * The problems of an untrusted scenario, one `{field, message}` each; none: it is safe to open.
 * @param {unknown} data
 */
export const checkScenario = (data) => {
  const checker = new Checker();
  const row = checker.keys(data, "", SCENARIO_KEYS);
  if (!isObject(data)) return checker.errors;
  if (row.version !== SCENARIO_VERSION) {
    checker.note("version", `is ${shown(row.version)}; this code reads version ${SCENARIO_VERSION}`);
  }
  if (row.name !== undefined) checker.text(row.name, "name", SCENARIO_NAME);
  for (const [key, most] of Object.entries(MAX_CHARACTERS)) {
    const good = row[key] === undefined || (typeof row[key] === "string" && row[key].length <= most);
    checker.note(key, good ? null : `must be a string of at most ${most} characters`);
  }
  checker.integers(row, "", ["seed", "step"]);
  const { acceptance_rate: rate = 0 } = row;
  const isRate = typeof rate === "number" && rate >= 0 && rate <= 1;
  checker.note("acceptance_rate", isRate ? null : `must lie in 0 to 1, got ${shown(rate)}`);
  const config = checker.keys(row.config, "config", KNOBS);
  for (const name of KNOBS) {
    if (config[name] !== undefined) checker.note(`config.${name}`, knobProblem(name, config[name]));
  }
  if (checker.errors.length === 0) {
    for (const [name, message] of knobsTogether(config)) checker.note(`config.${name}`, message);
  }
  if (config.num_gpu_blocks === undefined) checker.note("config.num_gpu_blocks", "is missing");
  checker.requests(row.requests);
  return checker.errors;
};

/** A scenario as the value of a URL fragment: base64url of its compact JSON. */
export const toFragment = (scenario) => {
  const bytes = new TextEncoder().encode(JSON.stringify(scenario));
  const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
};

/**
 * The inverse of `toFragment`, for text that anyone may have written.
 * @returns {{scenario: ?object, errors: {field: string, message: string}[]}}
 */
export const fromFragment = (fragment) => {
  const fail = (message) => ({ scenario: null, errors: [{ field: "", message }] });
  const [, most] = LIMITS.json_bytes;
  if (fragment.length > (most * 4) / 3 + 4) return fail(`the link is too long; it may hold ${most} bytes`);
  if (!/^[A-Za-z0-9_-]+$/.test(fragment)) return fail("the link holds no scenario");
  try {
    const text = atob(fragment.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(text, (char) => char.charCodeAt(0));
    const data = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    const errors = checkScenario(data);
    return { scenario: errors.length ? null : data, errors };
  } catch (error) {
    return fail(`the link holds no scenario: ${error.message}`);
  }
};
