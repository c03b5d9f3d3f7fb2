/* The stepper's view: draws a run of minivllm's scheduler, snapshot by snapshot, and sends intents.
 *
 * It knows nothing about where snapshots come from: a transport passes its messages to a
 * StepperSession (minivllm/stepper/session.py), be that in a kernel, in a worker, or nowhere (a
 * recording). What a snapshot holds is written down in minivllm/runs/snapshot.py.
 *
 * Everything that comes from outside becomes text through `textContent` or `append`, never markup.
 * The parts, in this order: DOM, scenario links, runs, the panels, the controls, the stepper.
 */

/**
 * @typedef {Object} Transport
 * @property {(message: object) => Promise<object>} send  a message to the session, its answer back
 * @property {{live: boolean, lookahead?: number, size?: number, reason?: string, fixed?: boolean,
 *   prompts?: boolean, start?: (onProgress: (loaded: number, total: number) => void) => Promise<void>}} capabilities
 *   `live`: messages are answered now; `start`: makes it live; `lookahead`: steps to fetch ahead of
 *   the reader; `size`: bytes that `start` loads; `reason`: why it can never be live; `fixed`: it
 *   steps on, but cannot go back and no knob can be turned; `prompts`: requests are added as text
 * @property {(callback: (error: Error) => void) => void} [onDeath]  called when the session is lost
 */

/**
 * @typedef {Object} Recording  an answer of the session, kept
 * @property {object} config
 * @property {object[]} steps  snapshots
 * @property {string[][]} [sentences]  each step told in words
 * @property {boolean} [done]
 * @property {boolean} [stuck]
 * @property {?string} [notice]
 * @property {Object<string, string>[]} [texts]  of each step: what it added to each request's text
 * @property {Object<string, string>} [prompts]  each request's prompt, where a real model runs
 */

// --- DOM ------------------------------------------------------------------------------------------

const SVG = "http://www.w3.org/2000/svg";
const DARK = "(prefers-color-scheme: dark)";
const STILL = "(prefers-reduced-motion: reduce)";

const setProperty = (node, name, value) => {
  if (value === null || value === undefined || value === false) return;
  if (name === "on") for (const [type, fn] of Object.entries(value)) node.addEventListener(type, fn);
  else if (name === "data") Object.assign(node.dataset, value);
  else if (name === "style") {
    for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
  } else node.setAttribute(name, value === true ? "" : value);
};

/** An element; strings among the children become text. */
const h = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) setProperty(node, name, value);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
};

/** An SVG element. */
const s = (tag, attributes, ...children) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

const setAttribute = (node, name, value) => {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
};

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const isStill = () => matchMedia(STILL).matches;

/** Replace the children of `parent`, unless what they show is what they showed. */
const refill = (parent, content, make) => {
  const signature = JSON.stringify(content);
  if (parent.shown === signature) return false;
  parent.shown = signature;
  parent.replaceChildren(...make());
  return true;
};

/** Make the children of `parent` those of `items`, in order; an item keeps its node. */
const reconcile = (parent, nodes, items, keyOf, make, update) => {
  const focused = document.activeElement;
  const keys = new Set(items.map(keyOf));
  for (const [key, node] of nodes) {
    if (keys.has(key)) continue;
    if (node.parentElement === parent) node.remove();
    if (!node.isConnected) nodes.delete(key);
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (!nodes.has(key)) nodes.set(key, make(item));
    const node = nodes.get(key);
    update(node, item);
    // One that has left the front for a place further back waits for its turn; the rest stay put.
    if (next && next !== node && next.nextElementSibling === node) next = node;
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
};

const ICONS = {
  first: "M5 4v12M16 4l-8 6 8 6z",
  back: "M14 4l-8 6 8 6z",
  step: "M6 4l8 6-8 6z",
  last: "M15 4v12M4 4l8 6-8 6z",
  play: "M5 3.5l11 6.5-11 6.5z",
  pause: "M6 4v12M14 4v12",
};

const icon = (name) => {
  const path = s("path", { d: ICONS[name], "stroke-width": 2.2, "stroke-linejoin": "round" });
  return s("svg", { viewBox: "0 0 20 20", class: "mv-icon", "aria-hidden": "true" }, path);
};

let serial = 0;
const newId = (prefix) => `${prefix}-${(serial += 1)}`;

// --- scenario links ---------------------------------------------------------------------------------
// The same limits as minivllm/runs/scenario.py; a test compares them.

export const LIMITS = {
  json_bytes: [2, 65_536],
  requests: [0, 500],
  arrival_step: [0, 10_000],
  num_prompt_tokens: [1, 16_384],
  all_prompt_tokens: [0, 131_072],
  max_tokens: [1, 4_096],
  priority: [-1_000_000, 1_000_000],
  seed: [0, 2 ** 32 - 1],
  step: [0, 10_000],
  token_id: [0, 2 ** 31 - 1],
  num_gpu_blocks: [1, 4_096],
  num_cpu_blocks: [0, 4_096],
  block_size: [1, 1_024],
  max_model_len: [2, 32_768],
  max_num_batched_tokens: [1, 65_536],
  max_num_seqs: [1, 1_024],
  long_prefill_token_threshold: [0, 65_536],
};

export const CHOICES = {
  policy: ["fcfs", "priority"],
  preemption_mode: ["recompute", "swap"],
  victim: [null, "last_admitted", "priority", "priority_as_upstream", "least_computed"],
};

const BOOL_KNOBS = [
  "enable_prefix_caching",
  "enable_chunked_prefill",
  "reserve_full_prompt",
  "admission_control",
  "keep_upstream_bugs",
];
const INT_KNOBS = [
  "num_gpu_blocks",
  "block_size",
  "max_model_len",
  "max_num_batched_tokens",
  "max_num_seqs",
  "long_prefill_token_threshold",
  "num_cpu_blocks",
];
export const KNOBS = [...INT_KNOBS, ...BOOL_KNOBS, ...Object.keys(CHOICES)];

const SCENARIO_KEYS = ["version", "name", "title", "question", "config", "requests", "seed", "step"];
const REQUEST_KEYS = [
  "request_id",
  "arrival_step",
  "num_prompt_tokens",
  "prompt_token_ids",
  "max_tokens",
  "priority",
  "prefix_group",
  "num_prefix_tokens",
];
const SCENARIO_NAME = /^[a-z0-9][a-z0-9-]{0,39}$/;
const REQUEST_ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$/;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

const shown = (value) => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
};

/** What is wrong with an integer, as a message; null: nothing. */
const integerProblem = (name, value) => {
  const [low, high] = LIMITS[name];
  if (!Number.isInteger(value)) return `${name} must be an integer, got ${shown(value)}`;
  if (value < low || value > high) return `${name} must lie in ${low} to ${high}, got ${value}`;
  return null;
};

/** What is wrong with a knob's value, as a message; null: nothing. */
const knobProblem = (name, value) => {
  if (INT_KNOBS.includes(name)) return integerProblem(name, value);
  if (name in CHOICES) {
    if (CHOICES[name].includes(value)) return null;
    return `${name} must be one of ${CHOICES[name].map(String).join(", ")}; got ${shown(value)}`;
  }
  return typeof value === "boolean" ? null : `${name} must be true or false, got ${shown(value)}`;
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
    this.integers(row, `${field}.`, ["arrival_step", "max_tokens", "priority"]);
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
  if (row.version !== 1) checker.note("version", `is ${shown(row.version)}; this code reads version 1`);
  if (row.name !== undefined) checker.text(row.name, "name", SCENARIO_NAME);
  for (const [key, most] of [["title", 120], ["question", 400]]) {
    const good = row[key] === undefined || (typeof row[key] === "string" && row[key].length <= most);
    checker.note(key, good ? null : `must be a string of at most ${most} characters`);
  }
  checker.integers(row, "", ["seed", "step"]);
  const config = checker.keys(row.config, "config", KNOBS);
  for (const name of KNOBS) {
    if (config[name] !== undefined) checker.note(`config.${name}`, knobProblem(name, config[name]));
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

// --- runs -------------------------------------------------------------------------------------------

const NUM_COLOURS = 8;

/** A colour and a pattern for each request, in order of first appearance; runs of a stepper share it. */
class Identities {
  #indices = new Map();

  index(id) {
    if (!this.#indices.has(id)) this.#indices.set(id, this.#indices.size);
    return this.#indices.get(id);
  }

  has(id) {
    return this.#indices.has(id);
  }

  colour(id) {
    return this.index(id) % NUM_COLOURS;
  }

  /** Eight colours do for eight requests; the next eight are striped, and so on. */
  pattern(id) {
    return Math.floor(this.index(id) / NUM_COLOURS) % 4;
  }

  /** Give a node the look of a request. */
  paint(node, id) {
    node.dataset.colour = this.colour(id);
    node.dataset.pattern = this.pattern(id);
  }
}

/** At most three characters of a request's id, to stand in a block. */
const shortId = (id) => {
  if (id.length <= 3) return id;
  const digits = /\d{1,2}$/.exec(id);
  return digits ? id[0] + digits[0] : id.slice(0, 3);
};

/** A snapshot as it would be before the first step. */
const emptySnapshot = (config) => {
  const numBlocks = (config.num_gpu_blocks ?? 0) + 1;
  const numCpuBlocks = config.preemption_mode === "swap" ? config.num_cpu_blocks : 0;
  return {
    step: -1,
    inputs: [],
    waiting: [],
    running: [],
    requests: {},
    scheduled: [],
    budget: {
      max_num_batched_tokens: config.max_num_batched_tokens,
      spent: 0,
      left: config.max_num_batched_tokens,
    },
    blocks: {
      state: `0${".".repeat(numBlocks - 1)}`,
      ref_cnt: Array(numBlocks).fill(0),
      owners: Array.from({ length: numBlocks }, () => []),
      block_hash: Array(numBlocks).fill(null),
      free_queue: Array.from({ length: numBlocks - 1 }, (_, i) => i + 1),
    },
    cpu_blocks: { num_blocks: numCpuBlocks, owners: Array(numCpuBlocks).fill(null) },
    events: [],
    stats: {},
    sampled: {},
    finished: [],
  };
};

/** A recording as the session's answers are, whether it is `record(scenario)` or a bare history. */
const asAnswer = (data) => data && { ...data, steps: data.steps ?? data.history.steps, first_step: 0 };

/** One branch: its snapshots so far, and what can be said of the whole run. */
class Run {
  /** @param {string} name  `main` or `fork` */
  constructor(name, identities) {
    this.name = name;
    this.identities = identities;
    this.config = {};
    this.scenario = null;
    this.steps = [];
    this.sentences = [];
    this.texts = [];
    this.prompts = {};
    this.done = false;
    this.stuck = false;
    this.notice = null;
    this.version = 0;
    this.#forget();
  }

  #moments = {};

  #forget() {
    /** Ids in order of arrival. */
    this.ids = [];
    this.arrivedAt = new Map();
    this.endedAt = new Map();
    this.longest = 1;
  }

  /** Take an answer of the session. @param {Recording} answer */
  take(answer) {
    if (answer.config) this.config = answer.config;
    if (answer.scenario) this.scenario = answer.scenario;
    const first = answer.first_step ?? this.steps.length;
    if (first < this.steps.length) {
      this.steps.length = first;
      this.sentences.length = first;
      this.texts.length = Math.min(this.texts.length, first);
      this.#forget();
      this.steps.forEach((snapshot) => this.#note(snapshot));
      this.version += 1;
    }
    for (const snapshot of answer.steps ?? []) {
      this.steps.push(snapshot);
      this.#note(snapshot);
    }
    this.sentences.push(...(answer.sentences ?? []));
    this.texts.push(...(answer.texts ?? []));
    Object.assign(this.prompts, answer.prompts);
    this.done = Boolean(answer.done);
    this.stuck = Boolean(answer.stuck);
    this.notice = answer.notice ?? null;
  }

  #note(snapshot) {
    for (const event of snapshot.events) {
      const id = event.request_id;
      if (event.type === "arrived") {
        this.identities.index(id);
        if (!this.arrivedAt.has(id)) this.ids.push(id);
        this.arrivedAt.set(id, snapshot.step);
        const most = Math.min(
          event.num_prompt_tokens + (event.max_tokens ?? Infinity),
          this.config.max_model_len ?? Infinity,
        );
        this.longest = Math.max(this.longest, Number.isFinite(most) ? most : event.num_prompt_tokens);
      } else if (["refused", "aborted", "stopped", "finished"].includes(event.type)) {
        this.endedAt.set(id, { step: snapshot.step, how: event.type });
      }
    }
  }

  /** No step will follow, whatever is asked. */
  get isOver() {
    return this.done || this.stuck || this.notice !== null;
  }

  /** The step that this run shows when the reader is at `step`. */
  at(step) {
    return Math.min(step, this.steps.length - 1);
  }

  /** What a request has said by `step`: all of it, and what of it is new. Real models only. */
  text(id, step) {
    const pieces = this.texts.slice(0, this.at(step) + 1).map((row) => row[id] ?? "");
    const fresh = pieces.pop() ?? "";
    return { before: pieces.join(""), fresh };
  }

  snapshot(step) {
    return this.steps[this.at(step)] ?? emptySnapshot(this.config);
  }

  previous(step) {
    return this.steps[this.at(step) - 1] ?? emptySnapshot(this.config);
  }

  /** Who was refused, aborted or finished before or in the step shown. */
  ended(step) {
    return this.ids.filter((id) => (this.endedAt.get(id)?.step ?? Infinity) <= step);
  }

  /** Steps worth a jump: `{step, text}`. */
  moments() {
    if (this.#moments.length === this.steps.length && this.#moments.version === this.version) {
      return this.#moments.found;
    }
    const found = [];
    for (const snapshot of this.steps) {
      for (const type of ["preempted", "swapped_in", "refused"]) {
        const event = snapshot.events.find((candidate) => candidate.type === type);
        if (event) found.push({ step: snapshot.step, type, id: event.request_id });
      }
    }
    this.#moments = { found, length: this.steps.length, version: this.version };
    return found;
  }
}

/** What `events` say of the victims of a step: id → event. */
const victimsOf = (snapshot) =>
  new Map(snapshot.events.filter((e) => e.type === "preempted").map((e) => [e.request_id, e]));

// --- panels -----------------------------------------------------------------------------------------
// Each draws one snapshot of one run: `draw(view)` with view = {run, step, snapshot, previous, ...}.
// Nodes with data-req or data-block are what hovering, focusing and clicking work on.

const panel = (name, title, ...children) =>
  h("section", { class: `mv-panel mv-${name}`, "aria-label": title }, ...children);

const heading = (title, aside) => h("div", { class: "mv-head" }, h("span", { class: "mv-title" }, title), aside);

/** A request's name in its colour. */
const chip = (identities, id, tag = "span") => {
  const node = h(tag, { class: "mv-chip", data: { req: id } }, id);
  identities.paint(node, id);
  return node;
};

/** Ids and numbers look alike if an engine numbers its requests; only ids with a letter are marked. */
const isTelling = (identities, word) => /[A-Za-z]/.test(word) && identities.has(word);

/** A sentence with the requests in it marked. */
const linked = (identities, sentence) =>
  sentence.split(/([A-Za-z0-9][A-Za-z0-9_.-]*)/).flatMap((part) => {
    const word = part.replace(/[.-]+$/, "");
    if (!word || !isTelling(identities, word)) return [part];
    return [chip(identities, word), part.slice(word.length)];
  });

/** The step told in sentences. */
class WhyPanel {
  constructor() {
    this.count = h("span", { class: "mv-aside" });
    this.list = h("ol", { class: "mv-sentences" });
    const onScroll = () => { this.isScrolled = true; };
    this.scroller = h("div", { class: "mv-why-body", tabindex: 0, role: "group", "aria-label": "Sentences", on: { scroll: onScroll } }, this.list);
    this.element = panel("why", "What happened in this step, and why", heading("Why", this.count), this.scroller);
  }

  draw({ run, step, snapshot, identities }) {
    const sentences = run.sentences[run.at(step)] ?? [];
    const alarms = [...victimsOf(snapshot).values()].map((e) => `${e.for_request_id} needs `);
    const items = sentences.map((sentence) => {
      const isAlarm = alarms.some((start) => sentence.startsWith(start));
      return [isAlarm ? "alarm" : / waits: | is refused: /.test(sentence) ? "wait" : "plain", sentence];
    });
    if (run.steps.length === 0) items.push(["plain", "Nothing has run yet. Press Step."]);
    const isLast = run.at(step) === run.steps.length - 1;
    if (run.notice && isLast) items.push(["alarm", run.notice]);
    else if (run.done && isLast) items.push(["end", "The run is over: nobody is left."]);
    refill(this.list, items, () => items.map(([kind, text]) => h("li", { data: { kind } }, ...linked(identities, text))));
    // To ask where it stands, or to set it for nothing, would make the browser lay out the page.
    if (this.isScrolled) this.scroller.scrollTop = 0;
    this.isScrolled = false;
    setText(this.count, snapshot.step < 0 ? "" : `step ${snapshot.step}`);
  }
}

/** What the requests say: shown where a real model runs, tokens as text. */
class TextsPanel {
  constructor() {
    this.list = h("ul", { class: "mv-texts-list" });
    this.scroller = h("div", { class: "mv-texts-body", tabindex: 0, role: "group", "aria-label": "Prompts and outputs" }, this.list);
    this.element = panel("texts", "What the requests say", heading("Text", h("span", { class: "mv-aside" }, "prompt, output, new token")), this.scroller);
  }

  draw({ run, step, snapshot, identities }) {
    this.element.hidden = Object.keys(run.prompts).length === 0;
    if (this.element.hidden) return;
    const here = [...snapshot.running, ...snapshot.waiting, ...snapshot.finished];
    const ids = [...new Set([...here, ...run.ended(run.at(step)).slice(-6)])];
    const items = ids.map((id) => {
      const oneLine = (text) => text.replaceAll("\n", "↵");
      const { before, fresh } = run.text(id, step);
      const prompt = run.prompts[id] ?? "";
      const shown = prompt.length > 160 ? `…${prompt.slice(-160)}` : prompt;
      return h("li", { data: { text: id } }, chip(identities, id), " ", h("span", { class: "mv-prompt" }, oneLine(shown)), h("span", { class: "mv-output" }, oneLine(before)), fresh ? h("mark", {}, oneLine(fresh)) : null);
    });
    this.list.replaceChildren(...items);
  }
}

const CAP_WORDS = {
  gap: ["gap", "nothing but its own gap, known − computed: it gets all that it lacks"],
  long_prefill_token_threshold: ["threshold", "long_prefill_token_threshold caps one request’s tokens"],
  max_num_batched_tokens: ["budget", "what was left of max_num_batched_tokens"],
  max_model_len: ["model length", "max_model_len"],
};
const MAX_GRANTS = 12;

/** The step's budget, filled in the order of scheduling. */
class BudgetPanel {
  #segments = new Map();

  constructor() {
    this.sum = h("span", { class: "mv-aside" });
    this.bar = h("div", { class: "mv-budget-bar", "aria-hidden": "true" });
    this.grants = h("ol", { class: "mv-grants" });
    this.element = panel("budget", "Token budget of this step", heading("Token budget", this.sum), this.bar, this.grants);
  }

  draw({ snapshot, identities }) {
    const { max_num_batched_tokens: most, spent } = snapshot.budget;
    setText(this.sum, `${spent} of ${most} tokens`);
    this.bar.dataset.many = snapshot.scheduled.length > 40;
    reconcile(
      this.bar,
      this.#segments,
      snapshot.scheduled,
      (row) => row.request_id,
      (row) => this.#segment(row.request_id, identities),
      (node, row) => {
        node.style.flexBasis = `${(100 * row.num_new_tokens) / most}%`;
        setText(node, row.num_new_tokens / most > 0.05 ? row.request_id : "");
      },
    );
    const first = snapshot.scheduled.slice(0, MAX_GRANTS);
    const rest = snapshot.scheduled.slice(MAX_GRANTS);
    const restTokens = rest.reduce((sum, row) => sum + row.num_new_tokens, 0);
    const withdrawn = snapshot.events.filter((event) => event.type === "unscheduled");
    const seen = first.map((row) => [row.request_id, row.num_new_tokens, row.limits.gap, row.cap]);
    refill(this.grants, [seen, rest.length, restTokens, withdrawn], () => {
      const rows = first.map((row) => this.#grant(row, identities));
      if (rest.length) rows.push(h("li", { class: "mv-rest" }, `and ${rest.length} more: ${plural(restTokens, "token")}`));
      rows.push(...withdrawn.map((event) => this.#withdrawn(event, identities)));
      return rows.length ? rows : [h("li", { class: "mv-rest" }, "No token is spent.")];
    });
  }

  #segment(id, identities) {
    const node = h("span", { class: "mv-segment", data: { req: id } });
    identities.paint(node, id);
    return node;
  }

  #grant(row, identities) {
    const [word, meaning] = CAP_WORDS[row.cap] ?? [row.cap, ""];
    const gap = row.limits.gap;
    const tokens = row.num_new_tokens === gap ? `${gap}` : `${row.num_new_tokens} of ${gap}`;
    return h(
      "li",
      { data: { grant: row.request_id, cap: row.cap } },
      chip(identities, row.request_id),
      h("span", { class: "mv-number" }, tokens),
      h("span", { class: "mv-cap", title: `Bound by ${meaning}` }, word),
    );
  }

  #withdrawn(event, identities) {
    return h(
      "li",
      { class: "mv-withdrawn" },
      chip(identities, event.request_id),
      h("s", { class: "mv-number" }, String(event.num_tokens)),
      h("span", { class: "mv-cap" }, "given back"),
    );
  }
}

const ROW_HEIGHT = 46; // px, as in view.css
const LONG_HEIGHT = 414; // px, of a long list, as in view.css
const MANY_ROWS = 20; // beyond, a list scrolls, and only the rows in sight exist

/** A list of requests; a long one keeps only the rows in sight in the page. */
class RowList {
  constructor(title, makeRow) {
    this.makeRow = makeRow;
    this.nodes = new Map();
    this.items = [];
    this.list = h("ul", { class: "mv-rows", "aria-label": title });
    this.before = h("div", { class: "mv-space" });
    this.after = h("div", { class: "mv-space" });
    this.top = 0;
    this.element = h("div", { class: "mv-scroll", on: { scroll: () => this.#onScroll() } },
      this.before, this.list, this.after);
  }

  #onScroll() {
    this.top = this.element.scrollTop;
    if (this.isLong) this.#place();
  }

  get isLong() {
    return this.items.length > MANY_ROWS;
  }

  draw(items, updateRow) {
    this.items = items;
    this.updateRow = updateRow;
    this.element.dataset.long = this.isLong;
    setAttribute(this.element, "tabindex", this.isLong ? "0" : null);
    this.#place();
  }

  #place() {
    let [first, last] = [0, this.items.length];
    if (this.isLong) {
      first = clamp(Math.floor(this.top / ROW_HEIGHT) - 2, 0, this.items.length - 1);
      last = Math.min(last, first + Math.ceil(LONG_HEIGHT / ROW_HEIGHT) + 4);
    }
    this.before.style.height = `${first * ROW_HEIGHT}px`;
    this.after.style.height = `${(this.items.length - last) * ROW_HEIGHT}px`;
    const visible = this.items.slice(first, last);
    reconcile(this.list, this.nodes, visible, (item) => item.id, this.makeRow, this.updateRow);
  }
}

/** WAITING and RUNNING in order, each request as its two numbers racing. */
class QueuesPanel {
  constructor({ identities, onAbort }) {
    this.identities = identities;
    this.onAbort = onAbort;
    const makeRow = (item) => this.#makeRow(item.id);
    this.running = new RowList("RUNNING, in order of admission", makeRow);
    this.waiting = new RowList("WAITING, the head of the queue first", makeRow);
    this.numRunning = h("span", { class: "mv-aside" });
    this.numWaiting = h("span", { class: "mv-aside" });
    this.ended = h("div", { class: "mv-ended" });
    this.element = panel(
      "queues",
      "Queues",
      heading("RUNNING", this.numRunning),
      this.running.element,
      heading("WAITING", this.numWaiting),
      this.waiting.element,
      this.ended,
    );
  }

  draw(view) {
    const { snapshot, run, step } = view;
    const before = this.#positions(view);
    const item = (id, place) => ({ id, place, row: snapshot.requests[id] });
    const update = (node, entry) => this.#updateRow(node, entry, view);
    this.running.draw(snapshot.running.map((id) => item(id, "running")), update);
    this.waiting.draw(snapshot.waiting.map((id) => item(id, "waiting")), update);
    this.element.dataset.canAbort = view.isLive;
    const most = run.config.max_num_seqs;
    setText(this.numRunning, most ? `${snapshot.running.length} of at most ${most}` : String(snapshot.running.length));
    setText(this.numWaiting, String(snapshot.waiting.length));
    this.#drawEnded(run.ended(run.at(step)), run);
    this.#slide(before);
  }

  #drawEnded(ids, run) {
    const marks = { finished: "✓", aborted: "stopped", stopped: "stopped", refused: "refused" };
    const shownIds = ids.slice(-10).map((id) => [id, marks[run.endedAt.get(id).how]]);
    const more = ids.length > shownIds.length ? [`${ids.length - shownIds.length} earlier, `] : [];
    refill(this.ended, [more, shownIds], () => {
      const chips = shownIds.map(([id, mark]) => {
        const node = chip(this.identities, id);
        node.append(h("small", {}, ` ${mark}`));
        return node;
      });
      return [h("span", { class: "mv-title" }, "ENDED"), ...(ids.length ? [...more, ...chips] : ["nobody yet"])];
    });
  }

  #makeRow(id) {
    const button = h(
      "button",
      { type: "button", class: "mv-row-main", data: { req: id }, "aria-pressed": "false" },
      chip(this.identities, id),
      h("span", { class: "mv-note" }),
      h("span", { class: "mv-number" }),
      h("span", { class: "mv-spoken" }, " tokens computed"),
      h(
        "span",
        { class: "mv-bar", "aria-hidden": "true" },
        h("span", { class: "mv-bar-prompt" }),
        h("span", { class: "mv-bar-known" }),
        h("span", { class: "mv-bar-done" }),
        h("span", { class: "mv-bar-output" }),
        h("span", { class: "mv-bar-now" }),
      ),
    );
    const abort = h(
      "button",
      { type: "button", class: "mv-abort", "aria-label": `Abort ${id}`, title: `Abort ${id}`, on: { click: () => this.onAbort(id) } },
      "×",
    );
    const node = h("li", { class: "mv-row", data: { row: id } }, button, abort);
    this.identities.paint(node, id);
    return node;
  }

  #updateRow(node, { id, place, row }, view) {
    const { snapshot, run, victims, usesPriority } = view;
    const button = node.firstElementChild;
    const [, note, numbers, , bar] = button.children;
    const isVictim = victims.has(id);
    const notes = this.#notes(id, place, row, { snapshot, run, isVictim, usesPriority });
    node.dataset.place = place;
    node.dataset.victim = isVictim;
    node.dataset.computed = row.num_computed_tokens;
    node.dataset.known = row.num_tokens;
    const signature = notes.join("|");
    if (note.dataset.text !== signature) {
      note.dataset.text = signature;
      note.replaceChildren(...notes.map((text, i) => h("span", { class: i === 0 && isVictim ? "mv-alarm" : "" }, text)));
    }
    setText(numbers, `${row.num_computed_tokens} / ${row.num_tokens}`);
    this.#drawBar(bar, row, run);
  }

  #notes(id, place, row, { snapshot, run, isVictim, usesPriority }) {
    const notes = [];
    if (isVictim) notes.push("preempted now");
    else if (row.num_scheduled_tokens) notes.push(`+${row.num_scheduled_tokens}`);
    else notes.push(place === "running" ? "no tokens" : row.num_computed_tokens ? "swapped out" : "waits");
    if (snapshot.finished.includes(id)) notes.push("ends");
    if (usesPriority) notes.push(`priority ${row.priority}`);
    if (run.arrivedAt.has(id)) notes.push(`came at ${run.arrivedAt.get(id)}`);
    if (row.num_cached_tokens) notes.push(`${row.num_cached_tokens} cached`);
    if (row.num_preemptions) notes.push(`preempted ×${row.num_preemptions}`);
    return notes;
  }

  /** Rows share no scale, or a short request would be a dot beside a long one; widths hint at it. */
  #drawBar(bar, row, run) {
    const end = Math.max(
      row.num_tokens,
      Math.min(row.num_prompt_tokens + (row.max_tokens ?? row.num_output_tokens + 1), run.config.max_model_len ?? Infinity),
    );
    const percent = (tokens) => `${(100 * tokens) / end}%`;
    const [prompt, known, done, output, now] = bar.children;
    const { num_prompt_tokens: numPrompt, num_computed_tokens: computed, num_scheduled_tokens: fresh } = row;
    bar.style.width = `${100 * Math.max(0.24, Math.sqrt(end / Math.max(run.longest, end)))}%`;
    prompt.style.width = percent(numPrompt);
    known.style.width = percent(row.num_tokens);
    done.style.width = percent(Math.min(computed, numPrompt));
    output.style.left = percent(numPrompt);
    output.style.width = percent(Math.max(0, computed - numPrompt));
    now.style.left = percent(computed - fresh);
    now.style.width = percent(fresh);
  }

  #positions({ animate }) {
    if (!animate || this.running.isLong || this.waiting.isLong) return null;
    const rows = this.element.querySelectorAll(".mv-row");
    if (rows.length > 24) return null;
    return new Map(Array.from(rows, (row) => [row.dataset.row, row.getBoundingClientRect()]));
  }

  /** Let each row glide from where it was; a row that changed its queue keeps its place by id. */
  #slide(before) {
    if (!before) return;
    for (const row of this.element.querySelectorAll(".mv-row")) {
      const from = before.get(row.dataset.row);
      if (!from) {
        row.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 220 });
        continue;
      }
      const to = row.getBoundingClientRect();
      const dy = from.top - to.top;
      if (Math.abs(dy) < 1) continue;
      row.animate([{ transform: `translateY(${dy}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
    }
  }
}

const MAX_DOM_BLOCKS = 400; // beyond, the pool is a canvas
const MAX_TABLE = 48; // block table entries that are listed
const STATE_WORDS = {
  0: "the null block: a placeholder that nobody owns",
  ".": "free, empty",
  e: "free, but its tokens are still cached (evictable)",
  p: "in use, partly filled",
  f: "in use, full",
  c: "in use, full, cached",
};

/** How much of each block is filled, 0 to 1, and whether this step wrote into it. */
const fillsOf = (snapshot, blockSize) => {
  const fills = new Map();
  for (const row of Object.values(snapshot.requests)) {
    const computed = row.num_computed_tokens;
    const start = computed - row.num_scheduled_tokens;
    row.block_table.forEach((block, index) => {
      const slots = clamp(computed - index * blockSize, 0, blockSize);
      const fresh = computed > start && (index + 1) * blockSize > start && index * blockSize < computed;
      const old = fills.get(block);
      fills.set(block, { fill: Math.max(slots / blockSize, old?.fill ?? 0), fresh: fresh || old?.fresh || false });
    });
  }
  return fills;
};

/** Blocks that a victim of this step had to give. */
const takenBlocks = (victims, previous, snapshot) => {
  const taken = new Set();
  for (const id of victims.keys()) {
    for (const block of previous.requests[id]?.block_table ?? []) {
      if (!snapshot.blocks.owners[block]?.includes(id)) taken.add(block);
    }
  }
  return taken;
};

/** A block as a sentence. */
const describeBlock = (snapshot, id) => {
  const { state, ref_cnt: refs, owners, block_hash: hashes, free_queue: queue } = snapshot.blocks;
  const parts = [`Block ${id}: ${STATE_WORDS[state[id]]}`];
  if (owners[id].length) parts.push(`owned by ${owners[id].join(", ")} (ref count ${refs[id]})`);
  const place = queue.indexOf(id);
  if (place >= 0) parts.push(`number ${place + 1} in the free queue`);
  if (hashes[id]) parts.push(`hash ${hashes[id]}…`);
  return `${parts.join("; ")}.`;
};

/** A small pool: one button for each block. */
class BlockGrid {
  #cells = [];

  constructor(identities) {
    this.identities = identities;
    this.element = h("div", { class: "mv-grid", role: "group", "aria-label": "Blocks; arrow keys move between them", on: { keydown: (event) => this.#move(event) } });
  }

  draw({ snapshot, run, fills, taken }) {
    const numBlocks = snapshot.blocks.state.length;
    if (this.#cells.length !== numBlocks) {
      this.#cells = Array.from({ length: numBlocks }, (_, id) => this.#makeCell(id));
      this.element.replaceChildren(...this.#cells);
    }
    this.element.dataset.size = numBlocks <= 41 ? "large" : numBlocks <= 121 ? "medium" : "small";
    this.snapshot = snapshot;
    this.#cells.forEach((cell, id) => this.#updateCell(cell, id, { snapshot, run, fills, taken }));
  }

  #makeCell(id) {
    return h(
      "button",
      { type: "button", class: "mv-cell", tabindex: id === 1 ? 0 : -1, data: { block: id } },
      h("span", { class: "mv-fill" }),
      h("span", { class: "mv-block-id" }, String(id)),
      " ",
      h("span", { class: "mv-owner" }),
      " ",
      h("span", { class: "mv-refs" }),
    );
  }

  #updateCell(cell, id, { snapshot, fills, taken }) {
    const { state, ref_cnt: refs, owners } = snapshot.blocks;
    const { fill = 0, fresh = false } = fills.get(id) ?? {};
    const signature = [state[id], refs[id], owners[id], fill, fresh, taken.has(id)].join("|");
    if (cell.dataset.signature === signature) return;
    cell.dataset.signature = signature;
    Object.assign(cell.dataset, { state: state[id], refs: refs[id], fresh, taken: taken.has(id), owners: owners[id].join(" ") });
    const [bar, , owner, count] = cell.children;
    bar.style.height = `${100 * fill}%`;
    bar.style.background = this.#background(owners[id]);
    if (owners[id].length) this.identities.paint(cell, owners[id][0]);
    else delete cell.dataset.colour;
    setText(owner, state[id] === "0" ? "∅" : this.#ownerWord(owners[id]));
    setText(count, refs[id] > 1 && owners[id].length < 3 ? `×${refs[id]}` : "");
    // What is written in it comes first: that is how someone who speaks to the computer calls it.
    const written = [id, owner.textContent, count.textContent].filter((word) => word !== "").join(" ");
    setAttribute(cell, "aria-label", `${written}. ${describeBlock(snapshot, id)}`);
  }

  #ownerWord(owners) {
    return owners.length > 2 ? `×${owners.length}` : owners.map(shortId).join("+");
  }

  /** A shared block shows its owners as bands. */
  #background(owners) {
    if (owners.length < 2) return "";
    const bands = owners.slice(0, 4).map((id, i, all) => {
      const colour = `var(--mv-c${this.identities.colour(id)})`;
      return `${colour} ${(100 * i) / all.length}% ${(100 * (i + 1)) / all.length}%`;
    });
    return `linear-gradient(115deg, ${bands.join(", ")})`;
  }

  #move(event) {
    const id = Number(event.target.dataset?.block);
    const perRow = Math.max(1, this.#cells.filter((cell) => cell.offsetTop === this.#cells[0].offsetTop).length);
    const jump = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow }[event.key];
    if (!jump || Number.isNaN(id)) return;
    event.preventDefault();
    event.stopPropagation();
    const target = this.#cells[clamp(id + jump, 0, this.#cells.length - 1)];
    this.#cells[id].tabIndex = -1;
    target.tabIndex = 0;
    target.focus();
  }

  mark(isLit) {
    this.#cells.forEach((cell, id) => cell.classList.toggle("is-lit", isLit !== null && isLit(id)));
  }

  rectOf(id) {
    return this.#cells[id]?.getBoundingClientRect();
  }
}

/** A large pool: a canvas, with a cursor for the keyboard. */
class BlockCanvas {
  #lit = null;
  #cursor = 1;
  #width = 0;
  #painted = [];

  constructor(identities, colours, onBlock) {
    this.identities = identities;
    this.colours = colours;
    this.onBlock = onBlock;
    this.canvas = h("canvas", { class: "mv-pool-canvas" });
    this.element = h(
      "div",
      {
        class: "mv-pool-wrap",
        tabindex: 0,
        role: "application",
        "aria-label": "Blocks; arrow keys move between them",
        on: {
          pointermove: (event) => onBlock(this.#blockAt(event)),
          pointerleave: () => onBlock(null),
          focus: () => onBlock(this.#cursor),
          blur: () => onBlock(null),
          keydown: (event) => this.#move(event),
        },
      },
      this.canvas,
    );
  }

  draw(view) {
    this.view = view;
    this.#layout();
    this.#paint();
  }

  /** The width has changed, or the theme: measure and paint all of it again. */
  reset() {
    this.#width = 0;
    this.#painted = [];
  }

  #layout() {
    const numBlocks = this.view.snapshot.blocks.state.length;
    if (!this.#width) this.#width = this.element.clientWidth || 320;
    const width = this.#width;
    this.size = clamp(Math.floor(Math.sqrt((width * 380) / numBlocks)), 5, 18);
    this.perRow = Math.max(1, Math.floor(width / this.size));
    const height = Math.ceil(numBlocks / this.perRow) * this.size;
    const ratio = window.devicePixelRatio || 1;
    const [w, hgt] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== hgt) {
      this.canvas.width = w;
      this.canvas.height = hgt;
      this.canvas.style.height = `${height}px`;
      this.#painted = [];
    }
    this.ratio = ratio;
  }

  /** Blocks that look as they did are left alone: most of them, in most steps. */
  #paint() {
    const { snapshot, fills, taken } = this.view;
    const { state, owners } = snapshot.blocks;
    const context = this.canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    const cursor = document.activeElement === this.element ? this.#cursor : -1;
    for (let id = 0; id < state.length; id += 1) {
      const fill = fills.get(id)?.fill ?? 0;
      const isDim = this.#lit !== null && !this.#lit(id);
      const look = `${state[id]}${owners[id].join()}/${fill}${isDim}${taken.has(id)}${id === cursor}`;
      if (this.#painted[id] === look) continue;
      this.#painted[id] = look;
      this.#paintBlock(context, id, { fill, isDim, isCursor: id === cursor });
    }
  }

  #paintBlock(context, id, { fill, isDim, isCursor }) {
    const { state, owners } = this.view.snapshot.blocks;
    const [size, inner] = [this.size, this.size - 1];
    const x = (id % this.perRow) * size;
    const y = Math.floor(id / this.perRow) * size;
    context.clearRect(x, y, size, size);
    context.globalAlpha = isDim ? 0.22 : 1;
    context.fillStyle = this.colours.get("free");
    context.fillRect(x, y, inner, inner);
    const share = fill * inner;
    owners[id].slice(0, 3).forEach((owner, i, all) => {
      context.fillStyle = this.colours.get(`c${this.identities.colour(owner)}`);
      context.fillRect(x + (inner * i) / all.length, y + inner - share, inner / all.length, share);
    });
    if (inner >= 8) this.#mark(context, { x, y, inner, state: state[id], owners: owners[id] });
    if (this.view.taken.has(id)) this.#frame(context, "alarm", x, y, inner);
    if (isCursor) this.#frame(context, "ink", x, y, inner);
    context.globalAlpha = 1;
  }

  /** The second cues, where there is room: a tick for the pattern, a corner for cached. */
  #mark(context, { x, y, inner, state, owners }) {
    context.fillStyle = this.colours.get("ink");
    const pattern = owners.length === 1 ? this.identities.pattern(owners[0]) : 0;
    if (pattern) context.fillRect(x + inner / 2 - pattern, y + inner - 2, 2 * pattern, 2);
    if (state === "c" || state === "e") context.fillRect(x + inner - 2, y, 2, 2);
  }

  #frame(context, colour, x, y, inner) {
    context.strokeStyle = this.colours.get(colour);
    context.lineWidth = 1.6;
    context.strokeRect(x + 0.8, y + 0.8, inner - 1.6, inner - 1.6);
  }

  #blockAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.size);
    const id = Math.floor((event.clientY - box.top) / this.size) * this.perRow + column;
    return column < this.perRow && id >= 0 && id < this.view.snapshot.blocks.state.length ? id : null;
  }

  #move(event) {
    const jump = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.perRow, ArrowUp: -this.perRow }[event.key];
    if (!jump) return;
    event.preventDefault();
    event.stopPropagation();
    this.#cursor = clamp(this.#cursor + jump, 0, this.view.snapshot.blocks.state.length - 1);
    this.onBlock(this.#cursor);
    setAttribute(this.element, "aria-label", describeBlock(this.view.snapshot, this.#cursor));
  }

  mark(isLit) {
    const isChanged = this.#lit !== isLit || isLit !== null;
    this.#lit = isLit;
    if (isChanged) this.#paint();
  }

  rectOf(id) {
    const box = this.canvas.getBoundingClientRect();
    const left = box.left + (id % this.perRow) * this.size;
    const top = box.top + Math.floor(id / this.perRow) * this.size;
    return new DOMRect(left, top, this.size - 1, this.size - 1);
  }
}

const LEGEND = [
  ["full", "full"],
  ["part", "partly filled"],
  ["cached", "cached"],
  ["shared", "shared"],
  ["evictable", "free, still cached"],
  ["free", "free"],
  ["fresh", "written now"],
  ["taken", "taken from the victim"],
];

/** Every physical block, the block table of the request in focus, and the free queue. */
class PoolPanel {
  constructor({ identities, colours, onBlock }) {
    this.identities = identities;
    this.grid = new BlockGrid(identities);
    this.canvas = new BlockCanvas(identities, colours, onBlock);
    this.usage = h("span", { class: "mv-aside" });
    this.table = h("div", { class: "mv-table" });
    this.lines = s("svg", { class: "mv-lines", "aria-hidden": "true" });
    this.holder = h("div", { class: "mv-holder" });
    this.readout = h("p", { class: "mv-readout" });
    this.queue = h("ol", { class: "mv-free-queue" });
    this.cpu = h("div", { class: "mv-cpu" });
    const legend = h("ul", { class: "mv-legend" }, LEGEND.map(([kind, text]) => h("li", {}, h("i", { data: { kind } }), text)));
    this.element = panel(
      "pool",
      "Block pool",
      heading("Block pool", this.usage),
      this.table,
      this.holder,
      this.readout,
      legend,
      h("div", { class: "mv-queue-line" }, h("span", { class: "mv-title" }, "Free queue"), this.queue),
      this.cpu,
      this.lines,
    );
  }

  draw(view) {
    const { snapshot, run, victims, previous } = view;
    const blocks = snapshot.blocks;
    this.view = { ...view, fills: fillsOf(snapshot, run.config.block_size), taken: takenBlocks(victims, previous, snapshot) };
    const surface = blocks.state.length > MAX_DOM_BLOCKS ? this.canvas : this.grid;
    if (this.surface !== surface) {
      this.surface = surface;
      this.holder.replaceChildren(surface.element);
    }
    surface.draw(this.view);
    const usable = blocks.state.length - 1;
    const free = blocks.free_queue.length;
    const cached = blocks.free_queue.filter((id) => blocks.state[id] === "e").length;
    setText(this.usage, `${usable - free} of ${usable} in use${cached ? `, ${cached} of the free still cached` : ""}`);
    this.#drawQueue(blocks);
    this.#drawCpu();
  }

  reset() {
    this.canvas.reset();
  }

  #drawQueue({ free_queue: queue, state }) {
    const most = 14;
    const first = queue.slice(0, most).map((id) => [id, state[id]]);
    refill(this.queue, [first, queue.length], () => {
      const items = first.map(([id, kind]) =>
        h("li", { data: { block: id, state: kind }, title: kind === "e" ? "still cached" : "empty" }, String(id)));
      if (queue.length > most) items.push(h("li", { class: "mv-rest" }, `+${queue.length - most}`));
      if (!queue.length) items.push(h("li", { class: "mv-rest" }, "empty: no block to give"));
      return items;
    });
  }

  /** The CPU pool of preemption by swap, and this step's copies. */
  #drawCpu() {
    const { snapshot } = this.view;
    const { num_blocks: numBlocks, owners } = snapshot.cpu_blocks;
    this.cpu.hidden = numBlocks === 0;
    if (!numBlocks) return;
    const used = owners.filter((owner) => owner !== null).length;
    const copied = new Map();
    const lines = [];
    for (const event of snapshot.events) {
      const isOut = event.type === "swapped_out";
      if (!isOut && event.type !== "swapped_in") continue;
      for (const [from, to] of event.blocks) copied.set(isOut ? to : from, isOut ? "in" : "out");
      const pairs = event.blocks.slice(0, 8).map(([from, to]) => `${from}→${to}`).join(" ");
      lines.push(h("p", { class: "mv-copies" }, isOut ? "GPU→CPU " : "CPU→GPU ", chip(this.identities, event.request_id), ` ${pairs}${event.blocks.length > 8 ? " …" : ""}`));
    }
    const cells = owners.map((owner, id) => {
      const cell = h("span", { class: "mv-cpu-cell", data: { cpu: id, copied: copied.get(id) ?? "" }, title: `CPU block ${id}: ${owner ?? "free"}` }, owner ? shortId(owner) : "");
      if (owner) {
        this.identities.paint(cell, owner);
        cell.dataset.req = owner;
      }
      return cell;
    });
    const words = h("span", { class: "mv-aside" }, `${used} of ${numBlocks} in use`);
    const label = owners.map((owner, id) => (owner ? `${id}: ${owner}` : "")).filter(Boolean).join(", ");
    this.cpu.replaceChildren(
      heading("CPU pool", words),
      h("div", { class: "mv-cpu-grid", role: "img", "aria-label": `CPU pool: ${label || "empty"}` }, cells),
      ...lines,
    );
  }

  /** Show what the reader points at. @param {{request: ?string, block: ?number}} focus */
  highlight(focus) {
    if (!this.view) return;
    const { snapshot } = this.view;
    const { owners } = snapshot.blocks;
    const { request, block } = focus;
    const isTracing = request !== null || block !== null;
    const isLit = (id) => id === block || (request !== null && owners[id].includes(request));
    this.element.classList.toggle("is-tracing", isTracing);
    this.surface.mark(isTracing ? isLit : null);
    const isKnown = block !== null && block < owners.length;
    setText(this.readout, isKnown ? describeBlock(snapshot, block) : "");
    this.#drawTable(request);
  }

  #drawTable(id) {
    const row = id === null ? undefined : this.view.snapshot.requests[id];
    if (this.lines.firstChild) this.lines.replaceChildren();
    if (!row) {
      const hint = id === null ? "Point at a request to trace its block table, at a block to see its owners." : `${id} is not here in this step.`;
      refill(this.table, hint, () => [h("span", { class: "mv-hint" }, hint)]);
      return;
    }
    this.table.shown = null;
    const entries = row.block_table.slice(0, MAX_TABLE).map((block, index) => h("li", { data: { block } }, h("small", {}, String(index)), String(block)));
    const rest = row.block_table.length - entries.length;
    const words = !row.block_table.length ? [row.cpu_block_table.length ? `its blocks are on the CPU: ${row.cpu_block_table.join(", ")}` : "holds no block"] : [];
    this.table.replaceChildren(
      h("span", { class: "mv-hint" }, "Block table of ", chip(this.identities, id), ", logical above physical ", ...words),
      h("ol", { class: "mv-entries" }, entries, rest > 0 ? h("li", { class: "mv-rest" }, `+${rest}`) : null),
    );
    this.#drawLines(entries, row.block_table, id);
  }

  #drawLines(entries, table, id) {
    const frame = this.element.getBoundingClientRect();
    const colour = `var(--mv-c${this.identities.colour(id)})`;
    entries.forEach((entry, index) => {
      const from = entry.getBoundingClientRect();
      const to = this.surface.rectOf(table[index]);
      if (!to) return;
      const [x1, y1] = [from.left + from.width / 2 - frame.left, from.bottom - frame.top];
      const [x2, y2] = [to.left + to.width / 2 - frame.left, to.top + 2 - frame.top];
      const bend = Math.max(10, (y2 - y1) * 0.5);
      this.lines.append(s("path", { d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, style: `stroke:${colour}` }));
    });
  }
}

const LABEL_WIDTH = 58; // px, left of the heat map
const LANES = [
  { name: "batch", most: (run) => Math.max(1, ...run.steps.map((x) => x.stats.num_scheduled_reqs)), value: (x) => x.stats.num_scheduled_reqs, unit: "" },
  { name: "tokens", most: (run) => Math.max(1, ...run.steps.map((x) => x.stats.num_scheduled_tokens)), value: (x) => x.stats.num_scheduled_tokens, unit: "" },
  { name: "KV use", most: () => 1, value: (x) => x.stats.kv_cache_usage, unit: "%" },
];
const LANE_HEIGHT = 26;
const LANE_GAP = 7;

/** Steps × requests as a heat map, with three lanes below; a click jumps. */
class TimelinePanel {
  #drawn = {};

  constructor({ identities, colours, onJump }) {
    this.identities = identities;
    this.colours = colours;
    this.onJump = onJump;
    this.base = h("canvas", { class: "mv-timeline-canvas", role: "img", "aria-label": "Timeline" });
    this.cursor = h("div", { class: "mv-cursor" });
    this.future = h("div", { class: "mv-future" });
    this.readout = h("span", { class: "mv-aside" });
    this.moments = h("div", { class: "mv-moments" });
    this.wrap = h(
      "div",
      { class: "mv-timeline-wrap", on: { click: (e) => this.#jump(e), pointermove: (e) => this.#point(e), pointerleave: () => this.#rest() } },
      this.base,
      this.future,
      this.cursor,
    );
    const key = h(
      "ul",
      { class: "mv-legend" },
      [["prefill", "several tokens (prompt)"], ["decode", "one token (decode)"], ["waiting", "waiting"], ["preempted", "preempted"], ["finished", "finished"]].map(([kind, text]) =>
        h("li", {}, h("i", { data: { kind } }), text)),
    );
    this.element = panel("timeline", "Timeline", heading("Timeline", this.readout), this.wrap, key, this.moments);
  }

  draw(view) {
    this.view = view;
    const { run, step } = view;
    this.width ||= this.wrap.clientWidth || 600;
    const state = this.#measure(run, step, this.width);
    const isSame = Object.keys(state).every((key) => state[key] === this.#drawn[key]);
    if (!isSame || run.steps.length < this.#drawn.numSteps) this.#paintAll(state, run);
    else if (run.steps.length > this.#drawn.numSteps) this.#paintMore(run);
    this.#placeCursor(run.at(step));
    this.#rest();
    this.#drawMoments(run, step);
  }

  reset() {
    this.width = 0;
  }

  /** Columns for more steps than there are yet, so that a growing run seldom rescales. */
  #measure(run, step, width) {
    const room = width - LABEL_WIDTH;
    const wanted = run.isOver ? Math.max(run.steps.length, 24) : 32 * 2 ** Math.max(0, Math.ceil(Math.log2((run.steps.length + 1) / 32)));
    const columns = Math.min(wanted, Math.floor(room / 2));
    const first = run.steps.length > columns ? clamp(run.at(step) - Math.floor(columns / 2), 0, run.steps.length - columns) : 0;
    const rowHeight = clamp(300 / Math.max(run.ids.length, 1), 0.6, 17);
    return { run, version: run.version, ids: run.ids.length, columns, first, width, rowHeight, theme: this.colours.theme, ratio: window.devicePixelRatio || 1 };
  }

  #paintAll(state, run) {
    this.#drawn = { ...state, columnWidth: (state.width - LABEL_WIDTH) / state.columns, numSteps: state.first, tops: [] };
    this.heatHeight = state.rowHeight * Math.max(run.ids.length, 1);
    const height = this.heatHeight + 6 + LANES.length * (LANE_HEIGHT + LANE_GAP) + 16;
    this.base.width = Math.round(state.width * state.ratio);
    this.base.height = Math.round(height * state.ratio);
    this.base.style.height = `${height}px`;
    this.context = this.base.getContext("2d");
    this.context.setTransform(state.ratio, 0, 0, state.ratio, 0, 0);
    this.#paintLabels(run, height);
    this.#paintMore(run);
  }

  #paintLabels(run, height) {
    const { context, colours } = this;
    const { rowHeight, columns, columnWidth, first } = this.#drawn;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const every = Math.ceil(12 / rowHeight);
    run.ids.forEach((id, index) => {
      if (index % every) return;
      if (every === 1) {
        context.fillStyle = colours.get(`c${this.identities.colour(id)}`);
        context.fillRect(0, index * rowHeight + 2, 3, rowHeight - 4);
      }
      context.fillStyle = colours.get("ink");
      // A label stands beside the middle of its row, or, where rows are thin, below its first.
      const middle = every === 1 ? (index + 0.5) * rowHeight : index * rowHeight + 6;
      context.fillText(id.length > 7 ? `${id.slice(0, 6)}…` : id, 7, middle);
    });
    this.#drawn.mosts = LANES.map((lane) => lane.most(run));
    LANES.forEach((lane, index) => {
      const top = this.#laneTop(index);
      context.fillStyle = colours.get("muted");
      context.fillText(lane.name, 7, top + LANE_HEIGHT - 6);
      context.fillStyle = colours.get("grid");
      context.fillRect(LABEL_WIDTH, top + LANE_HEIGHT, columns * columnWidth, 1);
    });
    context.fillStyle = colours.get("muted");
    context.textAlign = "center";
    const tick = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * columnWidth >= 44) ?? 1000;
    for (let step = Math.ceil(first / tick) * tick; step < first + columns; step += tick) {
      context.fillText(String(step), this.#x(step) + columnWidth / 2, height - 6);
    }
    context.textAlign = "start";
  }

  #laneTop(index) {
    return this.heatHeight + 6 + index * (LANE_HEIGHT + LANE_GAP);
  }

  #x(step) {
    return LABEL_WIDTH + (step - this.#drawn.first) * this.#drawn.columnWidth;
  }

  #paintMore(run) {
    const { first, columns, numSteps, mosts } = this.#drawn;
    if (LANES.some((lane, i) => run.steps.slice(numSteps).some((x) => lane.value(x) > mosts[i]))) {
      const { run: _, columnWidth, numSteps: __, mosts: ___, tops, ...state } = this.#drawn;
      if (numSteps > first) {
        this.#paintAll({ ...state, run }, run);
        return;
      }
    }
    const index = new Map(run.ids.map((id, i) => [id, i]));
    const last = Math.min(run.steps.length, first + columns);
    for (let step = Math.max(numSteps, first); step < last; step += 1) this.#paintColumn(run.steps[step], step, index);
    this.#drawn.numSteps = run.steps.length;
  }

  #paintColumn(snapshot, step, index) {
    const { context, colours } = this;
    const { rowHeight, columnWidth, mosts } = this.#drawn;
    const x = this.#x(step);
    const gap = columnWidth > 5 ? 1 : 0;
    const w = Math.max(columnWidth - gap, 0.8);
    const pad = rowHeight > 6 ? 1 : 0;
    for (const [id, row] of Object.entries(snapshot.requests)) {
      const y = index.get(id) * rowHeight;
      const tokens = row.num_scheduled_tokens;
      if (tokens) {
        const height = tokens > 1 || rowHeight < 5 ? rowHeight - 2 * pad : (rowHeight - 2 * pad) * 0.42;
        context.fillStyle = colours.get(`c${this.identities.colour(id)}`);
        context.globalAlpha = tokens > 1 ? clamp(0.55 + Math.log2(tokens) / 12, 0.6, 1) : rowHeight < 5 ? 0.5 : 0.9;
        context.fillRect(x, y + (rowHeight - height) / 2, w, height);
        context.globalAlpha = 1;
      } else {
        context.fillStyle = colours.get("waiting");
        context.fillRect(x, y + rowHeight / 2 - 0.5, columnWidth, 1);
      }
    }
    for (const event of snapshot.events) this.#paintMark(event, x + w / 2, (index.get(event.request_id) + 0.5) * rowHeight);
    LANES.forEach((lane, i) => {
      const height = (lane.value(snapshot) / mosts[i]) * LANE_HEIGHT;
      context.fillStyle = colours.get("lane");
      context.fillRect(x, this.#laneTop(i) + LANE_HEIGHT - height, w, height);
    });
  }

  #paintMark(event, x, y) {
    const { context, colours } = this;
    const r = clamp(this.#drawn.rowHeight * 0.3, 1.2, 4.5);
    if (event.type === "preempted") {
      context.strokeStyle = colours.get("alarm");
      context.lineWidth = r > 2 ? 2.2 : 1.2;
      context.beginPath();
      context.moveTo(x - r, y - r);
      context.lineTo(x + r, y + r);
      context.moveTo(x + r, y - r);
      context.lineTo(x - r, y + r);
      context.stroke();
    } else if (event.type === "finished") {
      context.fillStyle = colours.get("ink");
      context.beginPath();
      context.arc(x, y, r * 0.75, 0, 7);
      context.fill();
    }
  }

  #placeCursor(step) {
    const { columnWidth, first, columns, width } = this.#drawn;
    const x = this.#x(step);
    this.cursor.hidden = step < 0;
    this.cursor.style.transform = `translateX(${x - 1}px)`;
    this.cursor.style.width = `${columnWidth + 1}px`;
    this.future.style.left = `${x + columnWidth}px`;
    this.future.style.width = `${Math.max(0, this.#x(first + columns) - x - columnWidth)}px`;
    this.wrap.dataset.width = width;
  }

  #stepAt(event) {
    const x = event.clientX - this.wrap.getBoundingClientRect().left;
    const step = Math.floor((x - LABEL_WIDTH) / this.#drawn.columnWidth) + this.#drawn.first;
    return x >= LABEL_WIDTH && step < this.view.run.steps.length ? step : null;
  }

  #jump(event) {
    const step = this.#stepAt(event);
    if (step !== null) this.onJump(step);
  }

  #say(step) {
    const { stats } = this.view.run.snapshot(step);
    if (stats.num_scheduled_reqs === undefined) return "";
    return `step ${step}: batch ${stats.num_scheduled_reqs}, ${plural(stats.num_scheduled_tokens, "token")}, KV ${Math.round(100 * stats.kv_cache_usage)} %`;
  }

  #point(event) {
    const step = this.#stepAt(event);
    if (step === null) return this.#rest();
    const { run } = this.view;
    const id = run.ids[Math.floor((event.clientY - this.wrap.getBoundingClientRect().top) / this.#drawn.rowHeight)];
    const tokens = run.steps[step].requests[id]?.num_scheduled_tokens;
    setText(this.readout, `${this.#say(step)}${tokens ? `; ${id}: ${plural(tokens, "token")}` : ""}`);
  }

  #rest() {
    setText(this.readout, this.#say(this.view.run.at(this.view.step)));
  }

  #drawMoments(run, step) {
    const words = { preempted: "preempted", swapped_in: "back from the CPU", refused: "refused" };
    const all = run.moments();
    const start = Math.max(0, all.findIndex((moment) => moment.step > step - 1) - 3);
    const some = all.slice(start, start + 7).map((moment) => ({ ...moment, isHere: moment.step === run.at(step) }));
    const makeButton = ({ step: target, type, id, isHere }) =>
      h("button", { type: "button", class: "mv-moment", "aria-current": isHere ? "step" : null, on: { click: () => this.onJump(target) } }, `${target}: `, chip(this.identities, id), ` ${words[type]}`);
    this.moments.hidden = all.length === 0;
    refill(this.moments, [some, all.length], () => [
      h("span", { class: "mv-title" }, "Jump to"),
      ...some.map(makeButton),
      all.length > some.length ? h("span", { class: "mv-aside" }, `${all.length} in all`) : "",
    ]);
    setAttribute(this.base, "aria-label", `Timeline: ${plural(run.steps.length, "step")}, ${plural(run.ids.length, "request")}, ${plural(all.filter((m) => m.type === "preempted").length, "step")} with preemptions`);
  }
}

/** Colours as the canvas needs them: resolved, and again after the theme has changed. */
class Colours {
  #cache = new Map();
  theme = 0;

  constructor(probe) {
    this.probe = probe;
  }

  get(name) {
    if (!this.#cache.has(name)) {
      this.probe.style.color = `var(--mv-${name})`;
      this.#cache.set(name, getComputedStyle(this.probe).color);
    }
    return this.#cache.get(name);
  }

  refresh() {
    this.#cache.clear();
    this.theme += 1;
  }
}

/** All panels of one run. */
class BranchView {
  constructor(context) {
    this.context = context;
    this.title = h("div", { class: "mv-branch-title" });
    this.panels = [
      new WhyPanel(),
      new BudgetPanel(),
      new QueuesPanel(context),
      new PoolPanel(context),
      new TimelinePanel(context),
      new TextsPanel(),
    ];
    const [why, budget, queues, pool, timeline, texts] = this.panels;
    this.pool = pool;
    this.element = h(
      "div",
      { class: "mv-branch" },
      h("div", { class: "mv-branch-inner" }, this.title, why.element, budget.element, queues.element, pool.element, texts.element, timeline.element),
    );
  }

  draw(view) {
    const { run } = view;
    const snapshot = run.snapshot(view.step);
    const rows = Object.values(snapshot.requests);
    this.element.dataset.step = snapshot.step;
    this.element.dataset.branch = run.name;
    const full = {
      ...view,
      identities: this.context.identities,
      snapshot,
      previous: run.previous(view.step),
      victims: victimsOf(snapshot),
      usesPriority: run.config.policy === "priority" || rows.some((row) => row.priority !== 0),
    };
    setText(this.title, view.title);
    this.title.hidden = !view.title;
    for (const each of this.panels) each.draw(full);
  }

  highlight(focus) {
    this.pool.highlight(focus);
  }

  /** Sizes or colours have changed: canvases measure and paint anew. */
  reset() {
    for (const each of this.panels) each.reset?.();
  }
}

// --- controls ---------------------------------------------------------------------------------------

const KNOB_FORM = [
  ["num_gpu_blocks", "Blocks in the pool"],
  ["block_size", "Token slots in a block"],
  ["max_num_batched_tokens", "Token budget of a step"],
  ["max_num_seqs", "Most requests running"],
  ["long_prefill_token_threshold", "Most tokens for one request in a step (0: off)"],
  ["max_model_len", "Longest sequence, in tokens"],
  ["policy", "Queue policy"],
  ["victim", "Victim"],
  ["preemption_mode", "Preemption by"],
  ["num_cpu_blocks", "Blocks in the CPU pool"],
  ["enable_chunked_prefill", "Chunked prefill"],
  ["enable_prefix_caching", "Prefix caching"],
  ["admission_control", "Refuse what can never fit"],
];

const ARRIVALS = [
  ["as_written", "as in the scenario", { kind: "as_written" }],
  ["all_at_once", "all at once", { kind: "all_at_once" }],
  ["every", "one every 2 steps", { kind: "every", every: 2 }],
  ["burst", "4 at once, every 8 steps", { kind: "burst", size: 4, every: 8 }],
  ["poisson", "at random, 1 in 2 steps (Poisson)", { kind: "poisson", per_step: 0.5, seed: 1 }],
];

/** A labelled input with a place for what is wrong with it. */
class Field {
  constructor(name, label, input) {
    this.name = name;
    this.input = input;
    const id = newId("mv-field");
    input.id = id;
    input.setAttribute("aria-describedby", `${id}-error`);
    this.message = h("span", { class: "mv-error", id: `${id}-error`, role: "alert" });
    this.element = h(
      "div",
      { class: "mv-field", data: { field: name } },
      h("label", { for: id }, label, KNOBS.includes(name) || REQUEST_KEYS.includes(name) ? h("code", {}, name) : null),
      input,
      this.message,
    );
  }

  fail(message) {
    setText(this.message, message ?? "");
    this.input.setAttribute("aria-invalid", String(Boolean(message)));
  }
}

/** The field of one knob; `value` reads it, as the type that the knob has. */
class KnobField extends Field {
  constructor(name, label) {
    super(name, label, KnobField.#makeInput(name));
  }

  static #makeInput(name) {
    if (name in CHOICES) {
      const words = (choice) => (choice === null ? "the policy’s own" : choice);
      return h("select", {}, CHOICES[name].map((choice) => h("option", { value: choice ?? "" }, words(choice))));
    }
    if (BOOL_KNOBS.includes(name)) return h("input", { type: "checkbox", role: "switch" });
    return h("input", { type: "text", inputmode: "numeric", autocomplete: "off", size: 6 });
  }

  get value() {
    if (this.input.type === "checkbox") return this.input.checked;
    if (this.name in CHOICES) return this.input.value || null;
    const text = this.input.value.trim();
    return /^-?\d+$/.test(text) ? Number(text) : text;
  }

  set value(value) {
    if (this.input.type === "checkbox") this.input.checked = value;
    else this.input.value = value ?? "";
    this.fail(null);
  }

  /** Say what is wrong, if anything is. */
  check() {
    const problem = knobProblem(this.name, this.value);
    this.fail(problem);
    return problem === null;
  }
}

/** Show the session's errors beside their fields; those that have none go to the notice. */
const showErrors = (fields, errors, notice) => {
  const rest = errors.filter(({ field, message }) => {
    const name = field.split(".").at(-1);
    const target = fields.find((candidate) => candidate.name === name);
    target?.fail(message);
    return !target;
  });
  notice(rest.map(({ field, message }) => (field ? `${field}: ${message}` : message)).join(" "));
};

/** A form in a drawer; `submit` gets called with the fields checked. */
const form = (children, label, submit) => {
  const button = h("button", { type: "submit", class: "mv-button mv-primary" }, label);
  const notice = h("p", { class: "mv-error", role: "alert" });
  const element = h(
    "form",
    { class: "mv-form", novalidate: true, on: { submit: (event) => { event.preventDefault(); submit(); } } },
    ...children,
    h("div", { class: "mv-form-end" }, button, notice),
  );
  return { element, button, notice: (text) => setText(notice, text) };
};

/** The knobs and the arrival pattern; running again from step 0 under them. */
class KnobsForm {
  constructor(stepper) {
    this.stepper = stepper;
    this.fields = KNOB_FORM.map(([name, label]) => new KnobField(name, label));
    this.arrivals = new Field("arrivals", "Arrivals", h("select", {}, ARRIVALS.map(([key, text]) => h("option", { value: key }, text))));
    const all = [...this.fields, this.arrivals].map((field) => field.element);
    this.form = form([h("div", { class: "mv-fields" }, all)], "Apply", () => this.#submit());
    this.element = this.form.element;
  }

  show(run, liveWords) {
    const signature = JSON.stringify(run.config);
    if (this.signature !== signature) {
      this.signature = signature;
      for (const field of this.fields) field.value = run.config[field.name];
    }
    setText(this.form.button, liveWords("Apply"));
    this.form.button.disabled = !this.stepper.canRunLive;
  }

  /** The scenario as written last says how requests arrive. */
  resetArrivals() {
    this.arrivals.input.value = "as_written";
    this.pattern = "as_written";
    this.signature = "";
  }

  async #submit() {
    this.form.notice("");
    if (this.fields.filter((field) => !field.check()).length) return;
    const { config } = this.stepper.main;
    const changed = this.fields.filter((field) => field.value !== config[field.name]);
    const knobs = Object.fromEntries(changed.map((field) => [field.name, field.value]));
    const messages = changed.length ? [{ type: "set_knobs", knobs }] : [];
    const key = this.arrivals.input.value;
    if (key !== this.pattern) messages.push({ type: "set_arrivals", pattern: ARRIVALS.find((row) => row[0] === key)[2] });
    const errors = await this.stepper.runAgain(messages);
    if (errors.length) showErrors([...this.fields, this.arrivals], errors, this.form.notice);
    else this.pattern = key;
  }
}

/** One more request, arriving before the next step. */
class RequestForm {
  constructor(stepper) {
    this.stepper = stepper;
    const text = (value) => h("input", { type: "text", value, autocomplete: "off", size: 8 });
    this.fields = [
      new Field("request_id", "Name", text("")),
      new Field("num_prompt_tokens", "Prompt tokens", text("24")),
      new Field("max_tokens", "Tokens to generate", text("12")),
      new Field("priority", "Priority (lower runs first)", text("0")),
    ];
    this.form = form([h("div", { class: "mv-fields" }, this.fields.map((field) => field.element))], "Add", () => this.#submit());
    this.element = this.form.element;
  }

  show(run, liveWords) {
    const [name] = this.fields;
    const written = (run.scenario?.requests ?? []).map((row) => row.request_id);
    const taken = new Set([...run.ids, ...written, ...this.stepper.addedIds]);
    if (!name.input.value || taken.has(name.input.value)) {
      let index = taken.size;
      while (taken.has(`r${index}`)) index += 1;
      name.input.value = `r${index}`;
    }
    setText(this.form.button, liveWords(`Add before step ${this.stepper.nextStep}`));
    this.form.button.disabled = !this.stepper.canRunLive;
  }

  async #submit() {
    const [name, ...numbers] = this.fields;
    const problems = numbers.map((field) => {
      const text = field.input.value.trim();
      const problem = integerProblem(field.name, /^-?\d+$/.test(text) ? Number(text) : text);
      field.fail(problem);
      return problem;
    });
    const good = REQUEST_ID.test(name.input.value);
    name.fail(good ? null : "letters, digits, _ . and - only, at most 32");
    if (!good || problems.some(Boolean)) return;
    const request = { request_id: name.input.value };
    for (const field of numbers) request[field.name] = Number(field.input.value);
    const errors = await this.stepper.addRequest(request);
    showErrors(this.fields, errors, this.form.notice);
  }
}

/** One more prompt for a real model, as text. */
class PromptForm {
  constructor(stepper) {
    this.stepper = stepper;
    const text = (value) => h("input", { type: "text", value, autocomplete: "off", size: 8 });
    this.prompt = new Field("prompt", "Prompt", h("textarea", { rows: 3, maxlength: 4000 }));
    this.prompt.element.classList.add("mv-wide");
    this.fields = [
      this.prompt,
      new Field("request_id", "Name", text("")),
      new Field("max_tokens", "Tokens to generate", text("16")),
    ];
    this.form = form([h("div", { class: "mv-fields" }, this.fields.map((field) => field.element))], "Add", () => this.#submit());
    this.element = this.form.element;
  }

  show(run) {
    const [, name] = this.fields;
    const taken = new Set([...run.ids, ...this.stepper.addedIds]);
    if (!name.input.value || taken.has(name.input.value)) {
      let index = taken.size;
      while (taken.has(`p${index}`)) index += 1;
      name.input.value = `p${index}`;
    }
    setText(this.form.button, `Add before step ${this.stepper.nextStep}`);
    this.form.button.disabled = !this.stepper.canRunLive;
  }

  async #submit() {
    const [prompt, name, length] = this.fields;
    const number = length.input.value.trim();
    const maxTokens = /^-?\d+$/.test(number) ? Number(number) : number;
    prompt.fail(prompt.input.value ? null : "write something for the model to go on from");
    name.fail(REQUEST_ID.test(name.input.value) ? null : "letters, digits, _ . and - only, at most 32");
    length.fail(integerProblem("max_tokens", maxTokens));
    this.form.notice("");
    if (this.fields.some((field) => field.message.textContent)) return;
    const request = { request_id: name.input.value, prompt: prompt.input.value, max_tokens: maxTokens };
    const errors = await this.stepper.addRequest(request);
    showErrors(this.fields, errors, this.form.notice);
    if (!errors.length) prompt.input.value = "";
  }
}

/** The knobs of a run that goes on outside: to be read. */
class KnobsList {
  constructor() {
    this.list = h("ul", { class: "mv-fixed" });
    const why = "What this run has done cannot be done again, so its knobs stay. To turn them, step a scenario, for example SchedulerStepper(\"cramped\").";
    this.element = h("div", { class: "mv-form" }, h("p", {}, why), this.list);
  }

  show({ config }) {
    const words = (value) => (value === null ? "the policy’s own" : String(value));
    const rows = KNOB_FORM.filter(([name]) => name in config).map(([name, label]) => [label, name, words(config[name])]);
    refill(this.list, rows, () => rows.map(([label, name, value]) =>
      h("li", {}, h("span", {}, label, h("code", {}, name)), h("b", { data: { knob: name } }, value))));
  }
}

/** One knob changed from here on, both branches side by side. */
class ForkForm {
  constructor(stepper) {
    this.stepper = stepper;
    this.fields = KNOB_FORM.map(([name, label]) => new KnobField(name, label));
    const options = KNOB_FORM.map(([name, label]) => h("option", { value: name }, label));
    this.knob = new Field("knob", "What if, from here on, …", h("select", { on: { change: () => this.#choose() } }, options));
    this.place = h("div", { class: "mv-field-place" });
    this.close = h("button", { type: "button", class: "mv-button", on: { click: () => stepper.closeFork() } }, "Close the what-if");
    this.form = form([h("div", { class: "mv-fields" }, this.knob.element, this.place)], "Fork here", () => this.#submit());
    this.form.element.lastElementChild.append(this.close);
    this.element = this.form.element;
    this.#choose();
  }

  get field() {
    return this.fields.find((field) => field.name === this.knob.input.value);
  }

  #choose() {
    const { config } = this.stepper.main ?? { config: {} };
    if (config.num_gpu_blocks) this.field.value = config[this.field.name];
    this.place.replaceChildren(this.field.element);
  }

  show(run, liveWords) {
    const signature = JSON.stringify(run.config);
    if (this.signature !== signature) {
      this.signature = signature;
      this.#choose();
    }
    setText(this.form.button, liveWords(`Fork at step ${Math.max(this.stepper.step, 0)}`));
    this.form.button.disabled = !this.stepper.canRunLive;
    this.close.hidden = !this.stepper.fork;
  }

  async #submit() {
    this.form.notice("");
    if (!this.field.check()) return;
    const errors = await this.stepper.openFork({ [this.field.name]: this.field.value });
    showErrors([this.field], errors, this.form.notice);
  }
}

/** A link that opens this scenario at this step. */
class SharePanel {
  constructor(stepper) {
    this.stepper = stepper;
    this.link = h("input", { type: "text", readonly: true, "aria-label": "Link to this scenario at this step", on: { focus: () => this.link.select() } });
    this.copied = h("span", { class: "mv-aside", role: "status" });
    const copy = h("button", { type: "button", class: "mv-button mv-primary", on: { click: () => this.#copy() } }, "Copy link");
    this.element = h(
      "div",
      { class: "mv-form" },
      h("p", {}, "The link holds the whole scenario and the step. Nothing is sent anywhere."),
      h("div", { class: "mv-share" }, this.link, copy, this.copied),
    );
  }

  show() {
    this.link.value = this.stepper.link();
    setText(this.copied, "");
  }

  async #copy() {
    try {
      await navigator.clipboard.writeText(this.link.value);
      setText(this.copied, "Copied.");
    } catch {
      this.link.focus();
      setText(this.copied, "Press Ctrl+C to copy.");
    }
  }
}

const KEYS = [["→", "step"], ["←", "back"], ["Space", "play or pause"], ["Home", "first step"], ["End", "last step"], ["Esc", "let go of the request"]];

const keysPanel = () => ({
  element: h("dl", { class: "mv-form mv-keys" }, KEYS.flatMap(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
  show() {},
});

const SPEEDS = [["slow", 1600], ["normal", 800], ["fast", 300]];

// --- the stepper ------------------------------------------------------------------------------------

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;
const STEPS_A_MESSAGE = 200;

class Stepper {
  #listeners = {};
  #cleanups = [];
  #queue = Promise.resolve();
  #timer = 0;
  #filling = false;

  constructor(element, { transport, scenario = null, recording = null, history = null, scenarios = [], options = {} }) {
    this.root = element;
    this.transport = transport;
    this.scenarios = scenarios;
    this.options = options;
    this.step = -1;
    this.pinned = null;
    /** Of requests added by hand, which may not have arrived yet. */
    this.addedIds = new Set();
    this.hover = { request: null, block: null };
    this.identities = new Identities();
    this.liveState = transport.capabilities.live ? "on" : "off";
    this.main = new Run("main", this.identities);
    this.fork = null;
    this.#build();
    transport.onDeath?.((error) => this.#died(error));
    this.load(scenario, recording ?? history, options.step ?? scenario?.step ?? 0);
  }

  get isLive() {
    return this.liveState === "on";
  }

  get canRunLive() {
    return this.isLive || (Boolean(this.transport.capabilities.start) && this.liveState !== "starting");
  }

  get runs() {
    return [this.main, this.fork].filter(Boolean);
  }

  get numSteps() {
    return Math.max(...this.runs.map((run) => run.steps.length));
  }

  get canGrow() {
    return this.isLive && this.runs.some((run) => !run.isOver);
  }

  // --- what is in the page

  #build() {
    this.root.classList.add("mv-stepper");
    this.root.replaceChildren();
    const probe = h("span", { class: "mv-probe", "aria-hidden": "true" });
    this.colours = new Colours(probe);
    this.live = h("div", { class: "mv-live-region", role: "status", "aria-live": "polite" });
    this.branches = h("div", { class: "mv-branches" });
    this.frame = h(
      "div",
      { class: "mv-frame", tabindex: 0, role: "group", "aria-label": "Scheduler stepper. Right arrow steps, left arrow goes back, space plays." },
      this.#buildHeader(),
      this.#buildToolbar(),
      this.#buildDrawers(),
      this.branches,
      this.live,
      probe,
    );
    this.root.append(this.frame);
    this.views = { main: this.#newView("main") };
    this.branches.append(this.views.main.element);
    this.#listen();
  }

  #newView(name) {
    return new BranchView({
      identities: this.identities,
      colours: this.colours,
      onAbort: (id) => this.abort(name, id),
      onBlock: (block) => this.#point({ request: null, block }),
      onJump: (step) => this.goto(step),
    });
  }

  #buildHeader() {
    this.title = h("span", { class: "mv-scenario-title" });
    this.question = h("p", { class: "mv-question" });
    const names = this.scenarios.map((row, i) => h("option", { value: i }, row.title));
    this.chooser = h("select", { class: "mv-chooser", "aria-label": "Scenario", on: { change: () => this.#choose(Number(this.chooser.value)) } }, names);
    this.chooser.hidden = this.scenarios.length < 2;
    this.title.hidden = !this.chooser.hidden;
    this.liveButton = h("button", { type: "button", class: "mv-button mv-live-button", on: { click: () => this.start() } });
    this.progress = h("progress", { max: 1, value: 0, "aria-label": "Loading the scheduler" });
    this.liveText = h("span", { class: "mv-live-text" });
    this.notice = h("p", { class: "mv-notice", role: "status" });
    return h(
      "div",
      { class: "mv-header" },
      h("div", { class: "mv-header-line" }, this.title, this.chooser, h("span", { class: "mv-grow" }), h("span", { class: "mv-live" }, this.progress, this.liveText, this.liveButton)),
      this.question,
      this.notice,
    );
  }

  #buildToolbar() {
    const button = (name, label, fn, text) => {
      const node = h("button", { type: "button", class: "mv-button", "aria-label": text ? null : label, title: label, data: { act: name }, on: { click: fn } }, icon(name));
      if (text) node.append(h("span", {}, text));
      return node;
    };
    this.backButton = button("back", "One step back", () => this.goto(this.step - 1));
    this.firstButton = button("first", "To the first step", () => this.goto(0));
    this.stepButton = button("step", "One step on", () => this.goto(this.step + 1), "Step");
    this.stepButton.classList.add("mv-primary");
    this.playButton = button("play", "Play", () => this.#togglePlay());
    this.lastButton = button("last", "To the last step", () => this.goto(Infinity));
    this.speed = h("select", { class: "mv-speed", "aria-label": "Speed" }, SPEEDS.map(([name, ms]) => h("option", { value: ms, selected: name === "normal" }, name)));
    this.slider = h("input", { type: "range", class: "mv-slider", min: 0, step: 1, "aria-label": "Step", on: { input: () => this.goto(Number(this.slider.value)) } });
    this.counter = h("output", { class: "mv-counter" });
    return h(
      "div",
      { class: "mv-toolbar", role: "toolbar", "aria-label": "Stepping" },
      h("div", { class: "mv-buttons" }, this.firstButton, this.backButton, this.stepButton, this.playButton, this.lastButton),
      this.slider,
      this.counter,
      this.speed,
    );
  }

  #buildDrawers() {
    const { fixed, prompts, live } = this.transport.capabilities;
    const drawers = [
      ["Knobs", fixed ? new KnobsList() : new KnobsForm(this)],
      prompts ? ["Add a prompt", new PromptForm(this)] : fixed && !live ? null : ["Add a request", new RequestForm(this)],
      fixed ? null : ["What if …", new ForkForm(this)],
      this.options.canShare ? ["Share", new SharePanel(this)] : null,
      ["Keys", keysPanel()],
    ].filter(Boolean);
    this.drawers = drawers.map(([name, content]) => {
      const id = newId("mv-drawer");
      const holder = h("div", { class: "mv-drawer", id, hidden: true }, content.element);
      const button = h("button", { type: "button", class: "mv-tab", "aria-expanded": "false", "aria-controls": id, on: { click: () => this.#toggleDrawer(name) } }, name);
      return { name, content, holder, button };
    });
    this.knobsForm = fixed ? null : this.drawers[0].content;
    return h("div", { class: "mv-drawers" }, h("div", { class: "mv-tabs" }, this.drawers.map((d) => d.button)), this.drawers.map((d) => d.holder));
  }

  #toggleDrawer(name) {
    for (const drawer of this.drawers) {
      const isOpen = drawer.name === name && drawer.holder.hidden;
      drawer.holder.hidden = !isOpen;
      drawer.button.setAttribute("aria-expanded", String(isOpen));
    }
    this.#drawDrawers();
  }

  #drawDrawers() {
    const liveWords = (words) => (this.isLive ? words : `Run live: ${words[0].toLowerCase()}${words.slice(1)}`);
    for (const { content, holder } of this.drawers) if (!holder.hidden) content.show(this.main, liveWords);
  }

  // --- hovering, focusing, keys, theme

  #listen() {
    const on = (target, type, fn, options) => {
      target.addEventListener(type, fn, options);
      this.#cleanups.push(() => target.removeEventListener(type, fn, options));
    };
    const targetOf = (event) => event.target.closest?.("[data-req], [data-block]");
    const point = (event) => {
      const node = targetOf(event);
      if (node) this.#point(this.#focusOf(node));
      else if (event.type === "focusin" || !event.target.closest?.(".mv-pool-wrap")) this.#point({ request: null, block: null });
    };
    on(this.branches, "pointerover", point);
    on(this.branches, "focusin", point);
    on(this.branches, "pointerleave", () => this.#point({ request: null, block: null }));
    on(this.branches, "click", (event) => {
      const id = targetOf(event)?.dataset.req;
      if (id && !event.target.closest(".mv-abort, .mv-moment")) this.select(this.pinned === id ? null : id);
    });
    on(this.frame, "keydown", (event) => this.#onKey(event));
    const redraw = () => {
      for (const view of Object.values(this.views)) view.reset();
      this.#draw();
    };
    const retheme = () => {
      this.colours.refresh();
      redraw();
    };
    const observer = new MutationObserver(retheme);
    observer.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    observer.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light", "class"] });
    on(matchMedia(DARK), "change", retheme);
    let width = 0;
    const sizes = new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 1) return;
      width = entry.contentRect.width;
      redraw();
    });
    sizes.observe(this.branches);
    this.#cleanups.push(() => observer.disconnect(), () => sizes.disconnect());
  }

  #focusOf(node) {
    if (node.dataset.req) return { request: node.dataset.req, block: null };
    return { request: null, block: Number(node.dataset.block) };
  }

  #point(hover) {
    if (hover.request === this.hover.request && hover.block === this.hover.block) return;
    this.hover = hover;
    this.#highlight();
  }

  #highlight() {
    const isHovering = this.hover.request !== null || this.hover.block !== null;
    const focus = isHovering ? this.hover : { request: this.pinned, block: null };
    for (const view of Object.values(this.views)) view.highlight(focus);
    this.root.classList.toggle("is-tracing", focus.request !== null);
    const isMarked = focus.request !== null || this.pinned !== null;
    if (!isMarked && !this.wasMarked) return;
    this.wasMarked = isMarked;
    for (const node of this.branches.querySelectorAll("[data-req]")) {
      node.classList.toggle("is-lit", node.dataset.req === focus.request);
      if (node.ariaPressed !== null) node.ariaPressed = String(node.dataset.req === this.pinned);
    }
  }

  #onKey(event) {
    if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey) return;
    const target = event.target;
    if (target.matches("input, select, textarea")) return;
    const isButton = target.matches("button, summary, a");
    const acts = {
      ArrowRight: () => this.goto(this.step + 1),
      ArrowLeft: () => this.goto(this.step - 1),
      Home: () => this.goto(0),
      End: () => this.goto(Infinity),
      Escape: () => this.select(null),
      " ": isButton ? null : () => this.#togglePlay(),
    };
    if (!acts[event.key]) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
  }

  // --- where the run comes from

  /** Show a scenario: its recording if there is one, else live. */
  load(scenario, recording, step) {
    this.#pause();
    this.#dropFork();
    this.pinned = null;
    this.addedIds = new Set();
    this.identities = new Identities();
    this.main = new Run("main", this.identities);
    for (const view of Object.values(this.views)) view.element.remove();
    this.views = { main: this.#newView("main") };
    this.branches.append(this.views.main.element);
    this.scenario = scenario ?? recording?.scenario ?? null;
    if (recording) this.main.take(asAnswer(recording));
    else if (this.scenario) this.main.take({ config: this.scenario.config, scenario: this.scenario });
    if (this.scenario) this.main.scenario = this.scenario;
    this.recording = recording;
    this.step = clamp(step, Math.min(0, this.main.steps.length - 1), Math.max(this.main.steps.length - 1, -1));
    this.wantedStep = step;
    this.knobsForm?.resetArrivals();
    setText(this.title, this.scenario?.title ?? "");
    setText(this.question, this.scenario?.question ?? "");
    const hasNothing = !recording && !this.isLive && this.scenario;
    this.say(hasNothing ? `This scenario (${plural(this.scenario.requests?.length ?? 0, "request")}, ${this.scenario.config.num_gpu_blocks} blocks) is not recorded in this page.${this.canRunLive ? " Press Run live to compute it." : ""}` : "");
    if (this.isLive && this.scenario && !recording?.isOpen) this.#enqueue(() => this.#open());
    this.#draw();
  }

  #choose(index) {
    const { scenario, recording } = this.scenarios[index];
    this.load(scenario, recording ?? null, scenario.step ?? 0);
    this.#emit("scenario", { name: scenario.name });
  }

  /** Make the scheduler itself run: from here on every knob works. */
  async start() {
    if (this.isLive || this.liveState === "starting") return;
    this.liveState = "starting";
    this.progress.value = 0;
    this.say("");
    this.#drawLive();
    try {
      await this.transport.capabilities.start((loaded, total) => {
        this.progress.value = total ? loaded / total : 0;
        setText(this.liveText, loaded < total ? `${megabytes(loaded)} of ${megabytes(total)}` : "starting Python …");
      });
      this.liveState = "on";
      if (this.scenario) await this.#open();
      this.#emit("live", {});
    } catch (error) {
      this.liveState = "dead";
      this.say(`The live scheduler did not start: ${error.message}${this.main.steps.length ? " The recorded run stays." : ""}`);
    }
    this.#draw();
  }

  #died(error) {
    this.#pause();
    this.liveState = "dead";
    this.say(`The live scheduler stopped: ${error.message} What you see stays; Restart runs it again.`);
    this.#draw();
  }

  async #send(message) {
    const answer = await this.transport.send(message);
    if (!answer.ok) throw Object.assign(new Error(answer.errors.map((e) => e.message).join(" ")), { errors: answer.errors });
    return answer;
  }

  /** One intent after the other; a failed one says why and leaves things as they were. */
  #enqueue(work) {
    this.#queue = this.#queue.then(work).catch((error) => {
      if (this.isLive) this.say(error.message);
    });
    return this.#queue;
  }

  /** Run an intent; its errors, if the session refused it. */
  async #attempt(work) {
    let errors = [];
    if (!this.isLive) await this.start();
    if (!this.isLive) return [{ field: "", message: "the scheduler is not live" }];
    await this.#enqueue(async () => {
      try {
        await work();
      } catch (error) {
        errors = error.errors ?? [{ field: "", message: error.message }];
      }
    });
    this.#draw();
    return errors;
  }

  /** Open the scenario in the session and run to the step on show. */
  async #open() {
    const answer = await this.#send({ type: "open", scenario: this.scenario });
    const step = Math.max(this.step, this.main.steps.length ? 0 : this.wantedStep, 0);
    this.main.take({ ...answer, first_step: 0 });
    await this.#grow(step + 1 + this.#lookahead);
    this.#show(Math.min(step, this.numSteps - 1));
  }

  get #lookahead() {
    return this.transport.capabilities.lookahead ?? 0;
  }

  /** Ask for steps until each run has `length` of them or is over. */
  async #grow(length) {
    for (const run of this.runs) {
      while (!run.isOver && run.steps.length < length) {
        const before = run.steps.length;
        const count = Math.min(length - before, STEPS_A_MESSAGE);
        run.take(await this.#send({ type: "step", branch: run.name, count }));
        if (run.steps.length === before) break;
      }
    }
  }

  /** Fetch a few steps ahead, so that the next click finds its snapshot here. */
  #topUp() {
    if (this.#filling || !this.canGrow || !this.#lookahead) return;
    const length = this.step + 1 + this.#lookahead;
    if (this.runs.every((run) => run.isOver || run.steps.length >= length - this.#lookahead / 2)) return;
    this.#filling = true;
    this.#enqueue(async () => {
      try {
        await this.#grow(length);
      } finally {
        this.#filling = false;
      }
      this.#draw();
    });
  }

  // --- intents

  /** Go to a step; past the last known one, the session makes more. */
  async goto(step) {
    const target = Math.max(step, 0);
    if (target >= this.numSteps && this.canGrow) await this.#enqueue(() => this.#grow(target + 1));
    this.#show(clamp(target, Math.min(0, this.numSteps - 1), this.numSteps - 1));
    this.#topUp();
  }

  /** Run main again from step 0 after `messages`; answers with what is wrong, if anything. */
  runAgain(messages) {
    return this.#attempt(async () => {
      const step = this.step;
      for (const message of messages) {
        const answer = await this.#send(message);
        this.#dropFork();
        this.main.take({ ...answer, first_step: 0 });
        this.scenario = answer.scenario ?? this.scenario;
      }
      await this.#grow(step + 1 + this.#lookahead);
      this.#show(Math.min(step, this.numSteps - 1));
    });
  }

  /** Drop what lies ahead of the reader, so that an intent counts from the step on show. */
  async #rewind(run) {
    if (this.transport.capabilities.fixed) return; // what has happened has happened
    const length = run.at(this.step) + 1;
    if (run.steps.length > length) run.take(await this.#send({ type: "rewind", branch: run.name, step: length }));
  }

  /** The step that an intent comes before. */
  get nextStep() {
    return this.transport.capabilities.fixed ? this.numSteps : this.step + 1;
  }

  async #intervene(run, message) {
    await this.#rewind(run);
    run.take(await this.#send({ ...message, branch: run.name }));
  }

  addRequest(request) {
    return this.#attempt(async () => {
      for (const run of this.runs) await this.#intervene(run, { type: "add_request", request });
      this.addedIds.add(request.request_id);
      await this.#grow(this.step + 1 + this.#lookahead);
      this.say(`${request.request_id} arrives before step ${this.nextStep}.`, true);
    });
  }

  async abort(name, id) {
    const run = this.runs.find((candidate) => candidate.name === name);
    const errors = await this.#attempt(async () => {
      await this.#intervene(run, { type: "abort", request_id: id });
      await this.#grow(this.step + 1 + this.#lookahead);
      this.say(`${id} is aborted before step ${this.nextStep}.`, true);
    });
    if (errors.length) this.say(errors[0].message);
  }

  openFork(knobs) {
    return this.#attempt(async () => {
      const step = this.main.at(this.step);
      const answer = await this.#send({ type: "fork", step: Math.max(step, 0), knobs });
      this.#adoptFork(answer);
      await this.#grow(step + 1 + this.#lookahead);
      this.#show(step);
    });
  }

  #adoptFork(answer) {
    this.#dropFork();
    this.fork = new Run("fork", this.identities);
    this.fork.take({ ...answer, first_step: 0 });
    const { step, knobs } = answer.fork;
    const words = (values) => Object.keys(knobs).map((name) => `${name} = ${values[name]}`).join(", ") || "all knobs alike";
    this.forkWords = [`as it was: ${words(this.main.config)}`, `what if ${words(knobs)}, from step ${step}`];
    this.views.fork = this.#newView("fork");
    this.branches.append(this.views.fork.element);
    this.views.main.reset();
  }

  /** Take an answer that someone else asked for: Python, or another view of the same session. */
  take(answer) {
    if (answer.branch === "fork" && (!this.fork || answer.first_step === 0)) this.#adoptFork(answer);
    else if (answer.branch === "fork") this.fork.take(answer);
    else {
      if (answer.first_step === 0 && answer.scenario) this.#dropFork();
      this.main.take(answer);
      this.scenario = answer.scenario ?? this.scenario;
    }
    this.step = clamp(this.step, Math.min(0, this.numSteps - 1), this.numSteps - 1);
    this.#draw();
  }

  closeFork() {
    this.#dropFork();
    this.#show(this.main.at(this.step));
  }

  #dropFork() {
    this.fork = null;
    if (!this.views?.fork) return;
    this.views.fork.element.remove();
    delete this.views.fork;
    this.views.main.reset();
  }

  /** Pin a request, or none. */
  select(id) {
    this.pinned = id;
    this.#highlight();
    this.#emit("select", { request: id });
  }

  #togglePlay() {
    if (this.#timer) this.#pause();
    else this.#play();
    this.#drawToolbar();
  }

  #play() {
    if (this.step >= this.numSteps - 1 && !this.canGrow) this.#show(0);
    const tick = async () => {
      await this.goto(this.step + 1);
      if (!this.#timer) return;
      if (this.step >= this.numSteps - 1 && !this.canGrow) {
        this.#pause();
        this.#drawToolbar();
      } else this.#timer = setTimeout(tick, Number(this.speed.value));
    };
    this.#timer = setTimeout(tick, 120);
  }

  #pause() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  /** The address of this page with the scenario, opened at this step. */
  link() {
    const url = new URL(window.location.href);
    const scenario = { ...this.main.scenario, step: Math.max(this.step, 0) };
    url.hash = `${this.options.key ?? "stepper"}=${toFragment(scenario)}`;
    return url.href;
  }

  // --- drawing

  #show(step) {
    const isNew = step !== this.step;
    this.animate = isNew && Math.abs(step - this.step) === 1 && !isStill();
    this.step = step;
    this.#draw();
    this.animate = false;
    if (!isNew) return;
    if (this.isPassing) this.say("");
    this.#speak();
    this.#emit("step", { step, snapshot: this.main.snapshot(step) });
  }

  /** The live region: everything, when the reader steps; the step alone, while it plays. */
  #speak() {
    const sentences = this.main.sentences[this.main.at(this.step)] ?? [];
    setText(this.live, [`Step ${this.step}.`, ...(this.#timer ? [] : sentences)].join(" "));
  }

  /** Tell the reader; what `isPassing` goes with the next step. */
  say(text, isPassing = false) {
    setText(this.notice, text);
    this.notice.hidden = !text;
    this.isPassing = isPassing;
  }

  #draw() {
    if (!this.views) return;
    this.root.dataset.step = this.step;
    this.root.dataset.live = this.liveState;
    this.root.dataset.forked = Boolean(this.fork);
    const view = { step: this.step, isLive: this.isLive, animate: this.animate };
    this.views.main.draw({ ...view, run: this.main, title: this.fork ? this.forkWords[0] : "" });
    if (this.fork) this.views.fork.draw({ ...view, run: this.fork, title: this.forkWords[1] });
    this.#drawToolbar();
    this.#drawLive();
    this.#drawDrawers();
    this.#highlight();
  }

  #drawToolbar() {
    const last = this.numSteps - 1;
    const isEnd = this.step >= last && !this.canGrow;
    const isKnown = this.runs.every((run) => run.isOver);
    this.slider.max = Math.max(last, 0);
    this.slider.value = Math.max(this.step, 0);
    this.slider.style.setProperty("--done", `${last > 0 ? (100 * this.step) / last : 0}%`);
    setAttribute(this.slider, "aria-valuetext", `step ${this.step}`);
    setText(this.counter, this.step < 0 ? "before step 0" : `step ${this.step}${isKnown || !this.isLive ? ` of ${last}` : ""}`);
    for (const [button, isOff] of [[this.backButton, this.step <= 0], [this.firstButton, this.step <= 0], [this.stepButton, isEnd], [this.lastButton, isEnd]]) {
      setAttribute(button, "aria-disabled", String(isOff));
    }
    const act = this.#timer ? "pause" : "play";
    if (this.playButton.dataset.act !== act) {
      this.playButton.dataset.act = act;
      this.playButton.replaceChildren(icon(act));
      this.playButton.setAttribute("aria-label", act === "play" ? "Play" : "Pause");
      this.playButton.title = act === "play" ? "Play" : "Pause";
    }
  }

  #drawLive() {
    const { capabilities } = this.transport;
    const size = capabilities.size ? ` (${megabytes(capabilities.size)})` : "";
    const canStart = Boolean(capabilities.start);
    this.liveButton.hidden = !canStart || this.liveState === "on" || this.liveState === "starting";
    setText(this.liveButton, this.liveState === "dead" ? "Restart" : `Run live${size}`);
    this.progress.hidden = this.liveState !== "starting";
    if (this.liveState === "on") setText(this.liveText, "live");
    else if (this.liveState !== "starting") setText(this.liveText, canStart ? "recorded run" : capabilities.reason ?? "recorded run");
  }

  // --- for others

  on(event, fn) {
    (this.#listeners[event] ??= new Set()).add(fn);
    return () => this.#listeners[event].delete(fn);
  }

  #emit(event, data) {
    for (const fn of this.#listeners[event] ?? []) fn(data);
  }

  destroy() {
    this.#pause();
    this.#cleanups.forEach((clean) => clean());
    this.root.replaceChildren();
  }
}

/**
 * Draw a stepper in `element`.
 * @param {HTMLElement} element
 * @param {{transport: Transport, scenario?: object, recording?: Recording, history?: Recording,
 *   scenarios?: {name: string, title: string, scenario: object, recording?: Recording}[],
 *   options?: {step?: number, canShare?: boolean, key?: string}}} settings
 *   `options.key`: name of the URL fragment that a shared link has
 */
export const mount = (element, settings) => {
  const stepper = new Stepper(element, settings);
  return {
    get state() {
      const { step, pinned, main, fork, liveState } = stepper;
      const branches = { main: main.steps, ...(fork ? { fork: fork.steps } : {}) };
      return { step, selection: pinned, live: liveState, scenario: stepper.scenario, branches };
    },
    gotoStep: (step) => stepper.goto(step),
    select: (id) => stepper.select(id),
    load: (scenario, recording, step) => stepper.load(scenario, recording, step),
    take: (answer) => stepper.take(answer),
    start: () => stepper.start(),
    say: (text) => stepper.say(text),
    on: (event, fn) => stepper.on(event, fn),
    destroy: () => stepper.destroy(),
  };
};
