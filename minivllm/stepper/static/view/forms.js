/* What the drawers hold: knobs, requests, forks, links, keys. */

import { h, newId, refill, setText } from "./dom.js";
import { CHOICES, DEFAULTS, KNOBS, MAX_PROMPT_CHARACTERS, OPTIONAL_KNOBS, REQUEST_ID, REQUEST_KEYS } from "./limits.js";
import { integerProblem, knobProblem } from "./links.js";

const KNOB_FORM = [
  ["vllm_version", "Decide as this release of vLLM"],
  ["num_gpu_blocks", "Blocks in the pool"],
  ["block_size", "Token slots in a block"],
  ["max_num_batched_tokens", "Token budget of a step"],
  ["max_num_seqs", "Most requests running"],
  ["long_prefill_token_threshold", "Most tokens for one request in a step (0: off)"],
  ["max_model_len", "Longest sequence, in tokens"],
  ["long_prefill_token_threshold_adaptive", "At least the budget’s share of each (0.31.0)"],
  ["max_num_active_seqs", "Admit up to so many (0.31.0; empty: off)"],
  ["watermark", "Share of blocks kept free at admission (0.24.0)"],
  ["prefill_schedule_interval", "Prompts once in so many steps (0.33.0)"],
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

/** What is written in an input: a number if it looks like one, and if not, a problem to be told. */
const numberIn = (input) => {
  const text = input.value.trim();
  return /^-?\d+(\.\d+)?$/.test(text) ? Number(text) : text;
};

const textInput = (value) => h("input", { type: "text", value, autocomplete: "off", size: 8 });

/** A labelled input with a place for what is wrong with it: `problemOf(value)`, null if nothing is. */
class Field {
  constructor(name, label, input, problemOf = () => null) {
    this.name = name;
    this.input = input;
    this.problemOf = problemOf;
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

  get value() {
    return this.input.value;
  }

  fail(message) {
    setText(this.message, message ?? "");
    this.input.setAttribute("aria-invalid", String(Boolean(message)));
  }

  /** Say what is wrong, if anything is. */
  check() {
    const problem = this.problemOf(this.value);
    this.fail(problem);
    return problem === null;
  }
}

/** A field for one of the numbers in `LIMITS`. */
class NumberField extends Field {
  constructor(name, label, value) {
    super(name, label, textInput(value), (number) => integerProblem(name, number));
  }

  get value() {
    return numberIn(this.input);
  }
}

/** The field of one knob; `value` reads it, as the type that the knob has. */
class KnobField extends Field {
  constructor(name, label) {
    super(name, label, KnobField.#makeInput(name), (value) => knobProblem(name, value));
  }

  static #makeInput(name) {
    if (name in CHOICES) {
      const words = (choice) => (choice === null ? "the policy’s own" : choice);
      return h("select", {}, CHOICES[name].map((choice) => h("option", { value: choice ?? "" }, words(choice))));
    }
    if (typeof DEFAULTS[name] === "boolean") return h("input", { type: "checkbox", role: "switch" });
    return h("input", { type: "text", inputmode: "numeric", autocomplete: "off", size: 6 });
  }

  get value() {
    if (this.input.type === "checkbox") return this.input.checked;
    if (this.name in CHOICES) return this.input.value || null;
    if (OPTIONAL_KNOBS.includes(this.name) && !this.input.value.trim()) return null;
    return numberIn(this.input);
  }

  set value(value) {
    if (this.input.type === "checkbox") this.input.checked = value;
    else this.input.value = value ?? "";
    this.fail(null);
  }
}

/** Check all fields, so that each tells its own problem; whether none has any. */
const checkAll = (fields) => fields.filter((field) => !field.check()).length === 0;

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
export class KnobsForm {
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
    if (!checkAll(this.fields)) return;
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

const nameField = () => {
  const words = "letters, digits, _ . and - only, at most 32";
  return new Field("request_id", "Name", textInput(""), (name) => (REQUEST_ID.test(name) ? null : words));
};

/** One more request, arriving before the next step. */
class ArrivalForm {
  /** @param {string} prefix  of the names that it proposes */
  constructor(stepper, prefix, fields) {
    this.stepper = stepper;
    this.prefix = prefix;
    this.fields = fields;
    this.name = fields.find((field) => field.name === "request_id");
    this.form = form([h("div", { class: "mv-fields" }, fields.map((field) => field.element))], "Add", () => this.#submit());
    this.element = this.form.element;
  }

  show(run, liveWords) {
    const written = (run.scenario?.requests ?? []).map((row) => row.request_id);
    const taken = new Set([...run.ids, ...written, ...this.stepper.addedIds]);
    if (!this.name.value || taken.has(this.name.value)) {
      let index = taken.size;
      while (taken.has(`${this.prefix}${index}`)) index += 1;
      this.name.input.value = `${this.prefix}${index}`;
    }
    setText(this.form.button, liveWords(`Add before step ${this.stepper.nextStep}`));
    this.form.button.disabled = !this.stepper.canRunLive;
  }

  async #submit() {
    this.form.notice("");
    if (!checkAll(this.fields)) return;
    const request = Object.fromEntries(this.fields.map((field) => [field.name, field.value]));
    const errors = await this.stepper.addRequest(request);
    showErrors(this.fields, errors, this.form.notice);
    if (!errors.length) this.added?.();
  }
}

/** A request of the simulated model: it has lengths, and no text. */
export const requestForm = (stepper) =>
  new ArrivalForm(stepper, "r", [
    nameField(),
    new NumberField("num_prompt_tokens", "Prompt tokens", "24"),
    new NumberField("max_tokens", "Tokens to generate", "12"),
    new NumberField("priority", "Priority (lower runs first)", "0"),
  ]);

/** A prompt for a real model, as text. */
export const promptForm = (stepper) => {
  const area = h("textarea", { rows: 3, maxlength: MAX_PROMPT_CHARACTERS });
  const words = "write something for the model to go on from";
  const prompt = new Field("prompt", "Prompt", area, (text) => (text ? null : words));
  prompt.element.classList.add("mv-wide");
  const arrival = new ArrivalForm(stepper, "p", [prompt, nameField(), new NumberField("max_tokens", "Tokens to generate", "16")]);
  arrival.added = () => { area.value = ""; };
  return arrival;
};

/** The knobs of a run that goes on outside: to be read. */
export class KnobsList {
  constructor() {
    this.list = h("ul", { class: "mv-fixed" });
    const why = "What this run has done cannot be done again, so its knobs stay. To turn them, step a scenario, for example SchedulerStepper(\"cramped\").";
    this.element = h("div", { class: "mv-form" }, h("p", {}, why), this.list);
  }

  show({ config }) {
    const words = (name) => config[name] ?? (name in CHOICES ? "the policy’s own" : "off");
    const rows = KNOB_FORM.filter(([name]) => name in config).map(([name, label]) => [label, name, String(words(name))]);
    refill(this.list, rows, () => rows.map(([label, name, value]) =>
      h("li", {}, h("span", {}, label, h("code", {}, name)), h("b", { data: { knob: name } }, value))));
  }
}

/** One knob changed from here on, both branches side by side. */
export class ForkForm {
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
export class SharePanel {
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

export const keysPanel = () => ({
  element: h("dl", { class: "mv-form mv-keys" }, KEYS.flatMap(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
  show() {},
});
