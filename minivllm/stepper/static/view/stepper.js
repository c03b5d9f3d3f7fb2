/* The stepper: where the reader is, and what the reader wants. */

import { BranchView } from "./branch.js";
import { Client } from "./client.js";
import { Colours, Identities } from "./colours.js";
import { clamp, DARK, h, icon, isStill, newId, plural, setAttribute, setText } from "./dom.js";
import { ForkForm, keysPanel, KnobsForm, KnobsList, promptForm, requestForm, SharePanel } from "./forms.js";
import { DEFAULTS } from "./limits.js";
import { toFragment } from "./links.js";
import { Run } from "./run.js";

const SPEEDS = [["slow", 1600], ["normal", 800], ["fast", 300]];

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

class Stepper {
  #listeners = {};
  #cleanups = [];
  #timer = 0;
  #filling = false;

  constructor(element, { transport, scenario = null, recording = null, scenarios = [], options = {} }) {
    this.root = element;
    this.client = new Client(transport, (error) => this.say(error.message));
    this.capabilities = transport.capabilities;
    this.scenarios = scenarios;
    this.options = options;
    this.step = -1;
    this.pinned = null;
    /** Of requests added by hand, which may not have arrived yet. */
    this.addedIds = new Set();
    this.hover = { request: null, block: null };
    this.identities = new Identities();
    this.main = new Run("main", this.identities);
    this.fork = null;
    this.#build();
    transport.onDeath?.((error) => this.#died(error));
    this.load(scenario, recording, options.step ?? scenario?.step ?? 0);
  }

  get isLive() {
    return this.client.isLive;
  }

  get canRunLive() {
    return this.client.canRunLive;
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
    const { fixed, prompts, live } = this.capabilities;
    const drawers = [
      ["Knobs", fixed ? new KnobsList() : new KnobsForm(this)],
      prompts ? ["Add a prompt", promptForm(this)] : fixed && !live ? null : ["Add a request", requestForm(this)],
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
    if (recording) this.main.take({ ...recording, first_step: 0 });
    else if (this.scenario) this.main.take({ config: { ...DEFAULTS, ...this.scenario.config }, scenario: this.scenario });
    if (this.scenario) this.main.scenario = this.scenario;
    this.recording = recording;
    this.step = clamp(step, Math.min(0, this.main.steps.length - 1), Math.max(this.main.steps.length - 1, -1));
    this.wantedStep = step;
    this.knobsForm?.resetArrivals();
    setText(this.title, this.scenario?.title ?? "");
    setText(this.question, this.scenario?.question ?? "");
    const hasNothing = !recording && !this.isLive && this.scenario;
    this.say(hasNothing ? `This scenario (${plural(this.scenario.requests?.length ?? 0, "request")}, ${this.scenario.config.num_gpu_blocks} blocks) is not recorded in this page.${this.canRunLive ? " Press Run live to compute it." : ""}` : "");
    if (this.isLive && this.scenario && !recording?.isOpen) this.client.enqueue(() => this.#open());
    this.#draw();
  }

  #choose(index) {
    const { scenario, recording } = this.scenarios[index];
    this.load(scenario, recording ?? null, scenario.step ?? 0);
    this.#emit("scenario", { name: scenario.name });
  }

  /** Make the scheduler itself run: from here on every knob works. */
  async start() {
    if (this.isLive || this.client.state === "starting") return;
    this.progress.value = 0;
    this.say("");
    const started = this.client.start((loaded, total) => {
      this.progress.value = total ? loaded / total : 0;
      setText(this.liveText, loaded < total ? `${megabytes(loaded)} of ${megabytes(total)}` : "starting Python …");
    });
    this.#drawLive();
    try {
      await started;
      if (this.scenario) await this.#open();
      this.#emit("live", {});
    } catch (error) {
      this.client.state = "dead";
      this.say(`The live scheduler did not start: ${error.message}${this.main.steps.length ? " The recorded run stays." : ""}`);
    }
    this.#draw();
  }

  #died(error) {
    this.#pause();
    this.client.state = "dead";
    this.say(`The live scheduler stopped: ${error.message} What you see stays; Restart runs it again.`);
    this.#draw();
  }

  /** Run an intent; its errors, if the session refused it. */
  async #attempt(work) {
    if (!this.isLive) await this.start();
    if (!this.isLive) return [{ field: "", message: "the scheduler is not live" }];
    const errors = await this.client.attempt(work);
    this.#draw();
    return errors;
  }

  /** Open the scenario in the session and run to the step on show. */
  async #open() {
    const answer = await this.client.send({ type: "open", scenario: this.scenario });
    const step = Math.max(this.step, this.main.steps.length ? 0 : this.wantedStep, 0);
    this.main.take({ ...answer, first_step: 0 });
    await this.#grow(step + 1 + this.#lookahead);
    this.#show(Math.min(step, this.numSteps - 1));
  }

  get #lookahead() {
    return this.capabilities.lookahead ?? 0;
  }

  #grow(length) {
    return this.client.grow(this.runs, length);
  }

  /** Fetch a few steps ahead, so that the next click finds its snapshot here. */
  #topUp() {
    if (this.#filling || !this.canGrow || !this.#lookahead) return;
    const length = this.step + 1 + this.#lookahead;
    if (this.runs.every((run) => run.isOver || run.steps.length >= length - this.#lookahead / 2)) return;
    this.#filling = true;
    this.client.enqueue(async () => {
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
    if (target >= this.numSteps && this.canGrow) await this.client.enqueue(() => this.#grow(target + 1));
    this.#show(clamp(target, Math.min(0, this.numSteps - 1), this.numSteps - 1));
    this.#topUp();
  }

  /** Run main again from step 0 after `messages`; answers with what is wrong, if anything. */
  runAgain(messages) {
    return this.#attempt(async () => {
      const step = this.step;
      for (const message of messages) {
        const answer = await this.client.send(message);
        this.#dropFork();
        this.main.take({ ...answer, first_step: 0 });
        this.scenario = answer.scenario ?? this.scenario;
      }
      await this.#grow(step + 1 + this.#lookahead);
      this.#show(Math.min(step, this.numSteps - 1));
    });
  }

  /** The step that an intent comes before. */
  get nextStep() {
    return this.capabilities.fixed ? this.numSteps : this.step + 1;
  }

  #intervene(run, message) {
    return this.client.intervene(run, run.at(this.step) + 1, message);
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
      const answer = await this.client.send({ type: "fork", step: Math.max(step, 0), knobs });
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
    this.root.dataset.live = this.client.state;
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
    const { capabilities } = this;
    const size = capabilities.size ? ` (${megabytes(capabilities.size)})` : "";
    const canStart = Boolean(capabilities.start);
    this.liveButton.hidden = !canStart || this.client.state === "on" || this.client.state === "starting";
    setText(this.liveButton, this.client.state === "dead" ? "Restart" : `Run live${size}`);
    this.progress.hidden = this.client.state !== "starting";
    if (this.client.state === "on") setText(this.liveText, "live");
    else if (this.client.state !== "starting") setText(this.liveText, canStart ? "recorded run" : capabilities.reason ?? "recorded run");
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
 * @param {{transport: Transport, scenario?: object, recording?: Recording,
 *   scenarios?: {name: string, title: string, scenario: object, recording?: Recording}[],
 *   options?: {step?: number, canShare?: boolean, key?: string}}} settings
 *   `options.key`: name of the URL fragment that a shared link has
 */
export const mount = (element, settings) => {
  const stepper = new Stepper(element, settings);
  return {
    get state() {
      const { step, pinned, main, fork, client } = stepper;
      const branches = { main: main.steps, ...(fork ? { fork: fork.steps } : {}) };
      return { step, selection: pinned, live: client.state, scenario: stepper.scenario, branches };
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
