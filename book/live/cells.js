/* The code cells of a page, live: edit, run, stop, reset; Python runs in the page's worker.
 *
 * book/_ext/minivllm_live.py gives each live cell a class `mv-code-at-N`, N being its place in the
 * notebook, and an empty bar; this fills the bars. Before the first press it loads nothing. Cells that
 * the page does not show (`remove-cell`) run too, in their places.
 */

import { Judge } from "./judge.js";
import { KernelPython } from "./kernel.js";
import { chosenModel, isPrintedModel, modelChooser, onChoice } from "./model_choice.js";
import { Notebook } from "./notebook.js";
import { Outputs } from "./outputs.js";
import { liveServer, pagePython, whyNotLive } from "./python.js";
import { keepVerdict } from "./marks.js";

/* global LIVE, SCRIPT */

const h = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
};

/** The keyboard stays where it was when the button that was pressed (`focused`) gives way to another. */
const keepFocus = (focused, buttons) => {
  if (focused?.hidden && buttons.includes(focused)) buttons.find((one) => !one.hidden)?.focus();
};

const button = (act, text, title, onclick) =>
  h("button", { type: "button", class: "mv-code-button", "data-act": act, title, onclick }, text);

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const seconds = (time) => (time < 0.1 ? `${Math.max(1, Math.round(1000 * time))} ms` : `${time.toFixed(1)} s`);

const MAX_SHARED = 4_000; // characters of code, and of outputs, that a link may hold

/** JSON in a link: base64 of UTF-8, for URLs. */
const pack = (value) =>
  btoa(Array.from(new TextEncoder().encode(JSON.stringify(value)), (byte) => String.fromCharCode(byte)).join(""))
    .replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

/** The code and the outputs that a link holds; throws if it holds anything else. */
const unpack = (text) => {
  const bytes = Uint8Array.from(atob(text.replaceAll("-", "+").replaceAll("_", "/")), (char) => char.charCodeAt(0));
  const { code, printed } = JSON.parse(new TextDecoder().decode(bytes));
  if (typeof code !== "string" || typeof printed !== "string") throw new Error("no policy");
  return { code: code.slice(0, MAX_SHARED), printed: printed.slice(0, MAX_SHARED) };
};

/** One live cell of the page. */
class Cell {
  editor = null;
  hasRun = false; // in this session, as it reads now
  everRan = false; // in this session, whatever it read then

  constructor(page, root, index) {
    Object.assign(this, { page, root, index });
    this.bar = root.querySelector(".mv-code-bar");
    this.input = root.querySelector(".cell_input");
    this.code = this.input?.querySelector("div.highlight") ?? null;
    let box = root.querySelector(".cell_output");
    if (!box) {
      box = h("div", { class: "cell_output docutils container" });
      root.append(box);
    }
    this.outputs = new Outputs(box);
    this.box = box;
    this.needs = page.server ? "" : this.bar.dataset.needs ?? "";
    this.isGraded = this.bar.dataset.role === "graded";
    this.state = h("span", { class: "mv-code-state" });
    this.#fill();
    this.#showEdit();
  }

  get number() {
    return this.page.cells.indexOf(this) + 1;
  }

  get isLive() {
    return !this.needs;
  }

  #fill() {
    const { page } = this;
    if (!this.isLive) {
      this.bar.append(
        h("span", { class: "mv-code-needs" }, `${this.needs} It runs here if you open the book with `),
        h("code", {}, "make live"),
        h("span", { class: "mv-code-needs" }, " in a clone; or "),
        button("download", "download the notebook", "Download this chapter's notebook", () => page.download()),
        h("span", { class: "mv-code-needs" }, " for JupyterLab ("),
        h("code", {}, "make lab"),
        h("span", { class: "mv-code-needs" }, ")."),
      );
      return;
    }
    const verb = this.isGraded ? "▶ Check" : "▶ Run";
    this.runButton = button("run", verb, "Run this cell, and before it the cells above that have not run", () => page.run(this));
    this.aboveButton = button("above", "Run all above", "Run every cell above this one", () => page.runAbove(this));
    this.resetButton = button("reset", "Reset", "Back to the code that the book was printed with", () => page.reset([this]));
    this.stopButton = button("stop", "■ Stop", "Stop the cell that runs", () => page.stop());
    this.editButton = button("edit", this.input ? "Edit" : "Show the code", "Edit this cell", () => page.edit(this));
    this.bar.append(...(this.root.classList.contains("tag_policy") ? [button("share", "Copy a link", "A link that holds this code and its outputs", () => page.share(this))] : []));
    this.bar.append(this.runButton, this.stopButton, this.editButton, this.aboveButton, this.resetButton, this.state);
    this.show("");
  }

  /** Edits of an earlier visit are in the page before anything loads. */
  #showEdit() {
    const edit = this.page.notebook.edit(this.index);
    if (edit !== null && this.code) {
      this.printed = this.code.querySelector("pre").innerHTML;
      this.code.querySelector("pre").textContent = edit;
    }
    this.#mark();
  }

  #mark() {
    const isEdited = this.page.notebook.isEdited(this.index);
    this.root.classList.toggle("mv-edited", isEdited);
    if (this.resetButton) this.resetButton.hidden = !isEdited && !this.everRan;
  }

  /** What the bar says: "", "queued", "running", or how it went. */
  show(state, text = "") {
    const focused = document.activeElement;
    this.root.dataset.state = state;
    this.state.textContent = text;
    const isBusy = state === "running" || state === "queued";
    this.runButton.hidden = isBusy;
    this.stopButton.hidden = !isBusy;
    this.aboveButton.hidden = this.page.isFirst(this) || isBusy;
    this.editButton.hidden = this.editor !== null || this.isGraded;
    this.#mark();
    keepFocus(focused, [this.runButton, this.stopButton, this.aboveButton, this.resetButton]);
  }

  openEditor(makeEditor) {
    if (this.editor || !this.isLive || this.isGraded) return;
    const { notebook } = this.page;
    const original = notebook.cells[this.index].source;
    const parent = h("div", { class: "mv-editor" });
    parent.addEventListener("keydown", (event) => event.stopPropagation()); // the site has keys too: "/" searches
    if (this.input) {
      this.code.hidden = true;
      this.code.after(parent);
    } else this.bar.before(parent);
    this.editor = makeEditor({
      parent,
      text: notebook.source(this.index),
      label: `Code cell ${this.number}`,
      onChange: (text) => {
        notebook.set(this.index, original, text);
        this.hasRun = false;
        this.#mark();
        this.page.showTools();
      },
      onRun: (how) => this.page.run(this, how),
      complete: (text) => this.page.complete(text),
    });
    this.editButton.hidden = true;
  }

  reset() {
    const original = this.page.notebook.cells?.[this.index].source;
    if (this.editor && this.editor.text !== original) this.editor.text = original;
    else if (this.printed !== undefined) this.code.querySelector("pre").innerHTML = this.printed;
    this.outputs.restore();
    this.hasRun = false;
    this.show("");
  }

  forget() {
    this.hasRun = false;
    this.everRan = false;
    if (this.isLive && ["running", "queued"].includes(this.root.dataset.state)) this.show("", "stopped");
  }

  /** Open the folds that hide it. */
  reveal() {
    for (let node = this.root.querySelector("details"); node; node = node.parentElement.closest("details")) node.open = true;
  }
}

/** A cell that the page does not show, or what runs of one that needs PyTorch: it sets up, or asserts
 * what the text says. */
class HiddenCell {
  isLive = true;
  hasRun = false;
  everRan = false;
  outputs = null;

  constructor(index) {
    this.index = index;
  }

  show() {}

  forget() {
    this.hasRun = false;
    this.everRan = false;
  }
}

class LivePage {
  #python = null;
  #judge = null;
  #queue = [];
  #running = null;
  #makeEditor = null;
  #saidOrder = false;
  #generation = 0; // of the session: a restart begins another

  constructor(bar) {
    this.bar = bar;
    this.url = new URL(bar.dataset.notebook, location.href).href;
    this.notebook = new Notebook(bar.dataset.page);
    this.status = h("span", { class: "mv-code-status", role: "status" });
    this.server = LIVE.services ? liveServer() : null; // then Python runs there, not in the page
    this.cells = [];
    for (const root of document.querySelectorAll(".cell.mv-code")) {
      const index = Number(/mv-code-at-(\d+)/.exec(root.className)[1]);
      this.cells.push(new Cell(this, root, index));
    }
    for (const cell of this.cells) if (cell.isLive) cell.show("");
    this.all = this.cells.filter((cell) => cell.isLive);
    this.why = this.server ? null : whyNotLive();
    this.isExercise = bar.dataset.page.startsWith("exercises/");
    this.#fill();
  }

  isFirst(cell) {
    return this.cells.find((other) => other.isLive) === cell;
  }

  #fill() {
    const act = (...options) => (this.buttons[options[0]] = button(...options));
    this.buttons = {};
    this.progress = h("progress", { max: "1", value: "0", "aria-label": "Loading Python" });
    this.progress.hidden = true;
    const torch = this.cells.filter((cell) => !cell.isLive).length;
    if (this.why) {
      this.bar.append(h("span", { class: "mv-code-status" }, `The code of this page cannot run here: ${this.why}.`));
      for (const cell of this.cells.filter((one) => one.isLive)) cell.bar.hidden = true;
      return;
    }
    const what = this.server ? "Start Python on this computer" : `Load Python (${megabytes(LIVE.size)}, from this site's own folder)`;
    act("start", "▶ Make this page live", `${what} and edit and run the code`, () => this.start());
    act("all", "Run all", "Run every cell of the page", () => this.runAll());
    act("stop", "■ Stop", "Stop what runs", () => this.stop());
    act("restart", "Restart", "Start Python anew: all variables are lost, edits stay", () => this.restart());
    act("reset", "Reset all", "Back to the code and the outputs that the book was printed with", () => this.resetAll());
    act("download", "Download notebook", "This page as a notebook, with your edits, for JupyterLab", () => this.download());
    const more = torch ? ` ${torch} of the page's ${this.cells.length} cells need what no page has, and say so.` : "";
    const hasModel = this.#offersModels;
    const model = hasModel ? " The model is loaded when a cell first needs it, and the browser keeps it." : "";
    this.status.textContent = this.server
      ? "Its code runs on this computer, in the Python of make live, and may do there what you may do."
      : `Its code runs in your browser: ${megabytes(LIVE.size)} of Python from this site, nothing leaves the page.${model}${more}`;
    this.bar.append(...Object.values(this.buttons), this.progress, this.status);
    if (hasModel) this.#offerModels();
    this.showTools();
  }

  /** Whether a reader chooses a model here: on a server, the engine is the one that is installed there. */
  get #offersModels() {
    return "model" in this.bar.dataset && !this.server;
  }

  #offerModels() {
    this.bar.append(modelChooser());
    onChoice((name) => {
      if (this.#python?.isRunning) this.say(`An engine that a cell makes from now on has ${name.split("/").at(-1)}; one that is there keeps its own.`);
    });
  }

  showTools() {
    const focused = document.activeElement;
    const isUp = Boolean(this.#python?.isRunning);
    const { start, all, stop, restart, reset } = this.buttons;
    start.hidden = isUp;
    all.hidden = !isUp || this.#running !== null;
    stop.hidden = this.#running === null;
    restart.hidden = !isUp;
    reset.hidden = !this.notebook.edited.length && !this.all.some((cell) => cell.everRan);
    keepFocus(focused, [all, stop, restart, start, reset]);
  }

  say(text) {
    this.status.textContent = text;
  }

  // --- starting -----------------------------------------------------------------------------------

  /** The notebook's cells, those that the page hides among them. */
  async #load() {
    await this.notebook.load(this.url);
    if (this.hidden) return;
    const shown = new Set(this.cells.map((cell) => cell.index));
    this.hidden = [];
    this.notebook.cells.forEach((cell, index) => {
      // What a clock said holds for the machine that built the page.
      const isTimed = cell.tags.includes("timed") && !shown.has(index);
      const runs = cell.type === "code" && !isTimed && (cell.needs && !this.server ? cell.setup : !shown.has(index));
      if (runs) this.hidden.push(new HiddenCell(index));
    });
    this.all = [...this.cells.filter((cell) => cell.isLive), ...this.hidden].sort((a, b) => a.index - b.index);
  }

  async #openEditors() {
    await this.#load();
    if (this.#makeEditor === null) {
      this.#makeEditor = plainEditor;
      if (LIVE.editor) {
        const module = await import(new URL(LIVE.editor, SCRIPT).href);
        this.#makeEditor = module.makeEditor;
      }
    }
    for (const cell of this.cells) cell.openEditor(this.#makeEditor);
  }

  async edit(cell) {
    cell.reveal();
    await this.#guard(this.#openEditors());
    cell.editor?.focus();
  }

  /** Python up, editors open. */
  async start() {
    if (this.why) return;
    const python = this.#python ?? (this.server ? new KernelPython(this.server, this.bar.dataset.page) : pagePython());
    if (!this.#python) {
      this.#python = python;
      python.addEventListener("output", ({ detail }) => this.#take(detail));
      python.addEventListener("fetching", ({ detail }) => this.say(`Loading ${detail} …`));
      python.addEventListener("death", ({ detail }) => this.#onDeath(detail));
    }
    const opening = this.#openEditors();
    const isNew = !python.isRunning;
    if (isNew) {
      this.progress.hidden = this.server !== null;
      this.say(this.server ? "Starting Python on this computer …" : "Loading Python …");
    }
    const starting = python.start((loaded, size) => {
      this.progress.value = loaded / size;
      this.say(`Loading Python: ${megabytes(loaded)} of ${megabytes(size)}`);
      for (const cell of this.#queue) cell.show("queued", `loads Python, ${Math.round((100 * loaded) / size)} %`);
    });
    if (isNew && this.#offersModels) python.expectModel(chosenModel());
    this.showTools();
    await this.#guard(Promise.all([starting, opening]));
    this.progress.hidden = true;
    if (!this.#running && !this.#queue.length) this.say("Python is ready.");
    if (this.isExercise && !this.#judge) {
      this.#judge = new Judge();
      this.#judge.start().catch(() => {}); // the first check tells
    }
    this.showTools();
  }

  async #guard(promise) {
    try {
      return await promise;
    } catch (error) {
      this.progress.hidden = true;
      this.say(error.message);
      this.showTools();
      throw error;
    }
  }

  #onDeath(error) {
    this.#generation += 1;
    this.#queue = [];
    this.#running = null;
    this.#saidOrder = false;
    for (const cell of this.all) cell.forget();
    const why = error.message.replace(/\.$/, "");
    this.say(error.isGone ? error.message : `Python has stopped (${why}). Its variables are lost; your code is not. Run starts it again.`);
    this.progress.hidden = true;
    this.showTools();
  }

  // --- running ------------------------------------------------------------------------------------

  /** A cell; before it, what stands above it and has not run: it would find no names. */
  run(cell, how = "stay") {
    if (how === "next") {
      const next = this.cells.slice(this.cells.indexOf(cell) + 1).find((other) => other.isLive);
      next?.editor?.focus();
    }
    const isDue = (other) => other.index < cell.index && !other.isGraded && (!other.everRan || (cell.isGraded && !other.hasRun));
    return this.#enqueue(() => [...this.all.filter(isDue), cell], cell);
  }

  runAbove(cell) {
    return this.#enqueue(() => this.all.filter((other) => other.index < cell.index));
  }

  runAll() {
    return this.#enqueue(() => [...this.all]);
  }

  async #enqueue(which, target = null) {
    await this.#guard(this.#load());
    const cells = which().filter((cell) => !this.#queue.includes(cell) && cell !== this.#running);
    for (const cell of cells) cell.show("queued", "waits");
    this.#queue.push(...cells);
    if (target) this.#noteOrder(target);
    try {
      await this.start();
    } catch {
      for (const cell of this.#queue) cell.show("");
      this.#queue = [];
      return;
    }
    await this.#drain();
  }

  /** Run a cell; what it asks the judge is answered, and it runs again. */
  async #send(cell) {
    const code = cell.outputs || this.server ? this.notebook.source(cell.index) : this.notebook.hidden(cell.index);
    const replies = {};
    for (;;) {
      const result = await this.#python.send("cells", { call: "run", arguments: { code, replies } });
      if (!result.ask) return result;
      const { model } = JSON.parse(result.ask);
      if (model) {
        const failed = await this.#loadModel(cell, model);
        if (failed) return failed;
        continue;
      }
      cell.show("running", "is judged …");
      this.#judge ??= new Judge();
      const verdict = await this.#judge.verdict(result.ask);
      keepVerdict(verdict);
      replies[result.ask] = verdict;
      this.#fresh = true;
    }
  }

  /** Load the model that a cell asks for; what became of the cell if it cannot be had, else null. */
  async #loadModel(cell, name) {
    this.#fresh = true;
    const what = `the model ${name.split("/").at(-1)}`;
    this.progress.hidden = false;
    try {
      const words = await this.#python.loadModel(name, (loaded, size) => {
        this.progress.value = loaded / size;
        this.say(`Loading ${what}: ${megabytes(loaded)} of ${megabytes(size)}`);
        cell.show("running", `loads ${what}, ${Math.round((100 * loaded) / size)} %`);
      });
      cell.show("running", "runs …");
      if (words) this.#note(cell, words);
      return null;
    } catch (error) {
      if (!this.#python.isRunning) throw error; // #onDeath has told
      this.#take({ output_type: "error", ename: "ModelError", evalue: error.message, traceback: [error.message] });
      return { ok: false, error: "the model is not here", seconds: 0 };
    } finally {
      this.progress.hidden = true;
    }
  }

  /** Say once what running out of order does. */
  #noteOrder(cell) {
    const isBehind = this.all.some((other) => other.index > cell.index && other.everRan);
    const isStale = this.all.some((other) => other.index < cell.index && other.everRan && !other.hasRun);
    if (this.isExercise || this.#saidOrder || !(isBehind || isStale)) return;
    this.#saidOrder = true;
    const what = isBehind
      ? "cells below this one have run already, and it finds what they left"
      : "a cell above this one was changed and has not run since";
    this.#note(cell, `As in a notebook, all cells share one session: ${what}. “Restart”, then “Run all above”, gives the page's order.`);
  }

  /** Words beside a cell, as long as its outputs stay. */
  #note(cell, text) {
    this.note?.remove();
    this.note = h("p", { class: "mv-code-note", role: "status" }, text);
    cell.bar.after(this.note);
  }

  async #drain() {
    if (this.#running) return;
    const generation = this.#generation;
    const python = this.#python;
    while (this.#queue.length) {
      const cell = this.#queue.shift();
      this.#running = cell;
      this.#fresh = true;
      cell.show("running", "runs …");
      this.showTools();
      if (cell.number) this.say(`Cell ${cell.number} runs …`);
      python.busy = true;
      let result;
      try {
        result = await this.#send(cell);
      } catch {
        return; // it died: #onDeath has told
      }
      if (generation !== this.#generation) return;
      python.busy = false;
      this.#running = null;
      cell.everRan = true;
      cell.hasRun = true;
      if (this.#fresh) cell.outputs?.clear();
      const failed = !result.ok && !this.#isForgiven(cell, result);
      cell.show(failed ? "failed" : "done", `${failed ? `${result.error}, ` : ""}${seconds(result.seconds)}`);
      if (failed && !this.isExercise) {
        if (!cell.outputs) this.#blame(cell);
        for (const other of this.#queue) other.show("");
        this.#queue = [];
      }
      this.say(failed ? `${cell.number ? `Cell ${cell.number}` : "A hidden cell"} failed: ${result.error}.` : `Ran in ${seconds(result.seconds)}.`);
    }
    this.showTools();
  }

  #fresh = true; // the running cell has shown nothing yet
  #hiddenError = null;

  #take(output) {
    const cell = this.#running;
    if (!cell) return;
    if (!cell.outputs) {
      if (output.output_type === "error") this.#hiddenError = output;
      return;
    }
    if (this.#fresh) cell.outputs.clear();
    this.#fresh = false;
    try {
      cell.outputs.add(output);
    } catch (error) {
      cell.outputs.add({ output_type: "error", traceback: [`This output could not be drawn: ${error.message}`] });
    }
  }

  /** A hidden cell asserts what the text says; where the reader has changed the code or the model, it may fail. */
  #isForgiven(cell, result) {
    return !cell.outputs && result.error === "AssertionError" && (this.notebook.edited.length > 0 || (this.#offersModels && !isPrintedModel()));
  }

  /** A hidden cell's error is shown at the cell above it. */
  #blame(hidden) {
    const above = this.cells.filter((cell) => cell.isLive && cell.index < hidden.index).at(-1) ?? this.cells.find((cell) => cell.isLive);
    const { traceback } = this.#hiddenError;
    above.show("failed", "see below");
    above.outputs.add({ output_type: "error", traceback: ["In a cell below this one, which the page does not show:", ...traceback] });
  }

  async complete(text) {
    if (!this.#python?.isRunning || this.#running) return null;
    try {
      return await this.#python.send("cells", { call: "complete", arguments: { text } });
    } catch {
      return null;
    }
  }

  // --- stopping -----------------------------------------------------------------------------------

  stop() {
    for (const cell of this.#queue) cell.show("");
    this.#queue = [];
    if (this.#running && this.#python.canInterrupt) this.#python.interrupt();
    else this.restart("you stopped a cell");
  }

  async restart(why = "you restarted it") {
    this.#python?.kill(why);
    try {
      await this.start();
      this.say(`Python was started anew (${why}): its variables are lost. Run the cells above again.`);
    } catch {
      /* #guard has told */
    }
  }

  reset(cells) {
    this.notebook.reset(cells.map((cell) => cell.index));
    for (const cell of cells) cell.reset();
    this.showTools();
  }

  async resetAll() {
    await this.#guard(this.#load());
    if (this.notebook.edited.length && !window.confirm("Throw away all your edits on this page?")) return;
    this.reset(this.cells.filter((cell) => cell.isLive));
    for (const cell of this.hidden) cell.hasRun = false;
    this.say("All cells are as the book was printed.");
  }

  // --- links --------------------------------------------------------------------------------------

  /** A link that holds a cell's code and what it printed. */
  async share(cell) {
    await this.#guard(this.#load());
    const printed = cell.box.innerText.slice(0, MAX_SHARED);
    const url = new URL(`#policy=${pack({ code: this.notebook.source(cell.index), printed })}`, location.href).href;
    try {
      await navigator.clipboard.writeText(url);
      this.#note(cell, "The link is on the clipboard.");
    } catch {
      this.#note(cell, url);
    }
  }

  /** Put a link's code into its cell. Nothing runs; what it printed elsewhere is text. */
  async openLink() {
    const cell = this.cells.find((one) => one.root.classList.contains("tag_policy"));
    const found = /^#policy=([\w-]+)$/.exec(location.hash);
    if (!cell || !found || this.why) return;
    let shared;
    try {
      shared = unpack(found[1]);
    } catch {
      this.#note(cell, "The link could not be read.");
      return;
    }
    await this.#openEditors();
    cell.root.scrollIntoView();
    const take = () => {
      cell.editor.text = shared.code;
      this.#note(cell, `This code came with a link: read it before you run it. It is said to have printed:\n${shared.printed}`);
    };
    if (!this.notebook.isEdited(cell.index) || cell.editor.text === shared.code) take();
    else {
      this.#note(cell, "The link brings other code for this cell, in place of your own. ");
      this.note.append(button("take", "Replace my code", "Put the link's code into this cell; nothing runs", take));
    }
  }

  async download() {
    await this.#guard(this.notebook.load(this.url));
    this.notebook.download(`${this.bar.dataset.page.split("/").at(-1)}.ipynb`);
  }
}

/** Where the site was built without CodeMirror. */
const plainEditor = ({ parent, text, label, onChange, onRun }) => {
  const area = h("textarea", { class: "mv-plain-editor", "aria-label": label, spellcheck: "false", rows: String(text.split("\n").length) });
  area.value = text;
  area.addEventListener("input", () => onChange(area.value));
  area.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.shiftKey || event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    onRun(event.shiftKey ? "next" : "stay");
  });
  parent.append(area);
  return {
    get text() {
      return area.value;
    },
    set text(value) {
      area.value = value;
      onChange(value);
    },
    focus: () => area.focus(),
  };
};

/** A place for words, which no check reads; they go into the notebook. */
const freeText = (box, notebook) => {
  const index = Number(box.dataset.cell);
  const original = box.dataset.source;
  const area = h("textarea", { class: "mv-plain-editor", "aria-label": "Your words: kept in this browser, and in the downloaded notebook", rows: "6" });
  area.value = notebook.edit(index) ?? original;
  area.addEventListener("input", () => notebook.set(index, original, area.value));
  box.replaceChildren(area);
};

window.minivllmJudge = Judge; // for the tests, which compare its verdicts with the grader's

const startPage = () => {
  const bar = document.querySelector(".mv-code-page");
  if (!bar) return;
  window.minivllmCells = new LivePage(bar);
  window.minivllmCells.openLink();
  window.addEventListener("hashchange", () => window.minivllmCells.openLink());
  for (const box of document.querySelectorAll(".mv-free-text")) freeText(box, window.minivllmCells.notebook);
};

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startPage);
else startPage();
