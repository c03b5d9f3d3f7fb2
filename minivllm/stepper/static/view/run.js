/* One branch of a run: its snapshots so far, and what can be said of all of them. */

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

/** A snapshot as it would be before the first step. */
const emptySnapshot = (config) => {
  const numBlocks = (config.num_gpu_blocks ?? 0) + 1;
  const numCpuBlocks = config.preemption_mode === "swap" ? config.num_cpu_blocks : 0;
  return {
    step: -1,
    waiting: [],
    running: [],
    requests: {},
    scheduled: [],
    budget: { max_num_batched_tokens: config.max_num_batched_tokens, spent: 0 },
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
    finished: [],
  };
};

const MOMENTS = ["preempted", "swapped_in", "refused"];
const ENDS = ["refused", "aborted", "stopped", "finished"];

/** One branch: its snapshots so far, and what can be said of the whole run. */
export class Run {
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

  #forget() {
    /** Ids in order of arrival. */
    this.ids = [];
    this.arrivedAt = new Map();
    this.endedAt = new Map();
    this.longest = 1;
    /** Steps worth a jump: `{step, type, id}`, the first of each type in a step. */
    this.moments = [];
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
    for (const type of MOMENTS) {
      const event = snapshot.events.find((candidate) => candidate.type === type);
      if (event) this.moments.push({ step: snapshot.step, type, id: event.request_id });
    }
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
      } else if (ENDS.includes(event.type)) {
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
}

/** What `events` say of the victims of a step: id → event. */
export const victimsOf = (snapshot) =>
  new Map(snapshot.events.filter((e) => e.type === "preempted").map((e) => [e.request_id, e]));
