/* The steppers of a static page: recorded runs first, the scheduler itself on demand.
 *
 * book/_ext/minivllm_stepper.py joins the view and this file into one classic script (which works
 * from disk too, where a module does not) and sets LIVE before it: what "Run live" loads from the
 * site's own folder, {worker, pyodide, packages, modules, size}, or {reason} why there is none;
 * `modules` is how many of the `size` bytes are modules, which load all at once.
 */

import { fromFragment, mount } from "./view/index.js";

/* global LIVE */

const SCRIPT = document.currentScript.src;
const LOOKAHEAD = 12; // steps fetched ahead of the reader
const ANSWER_TIMEOUT = 20_000; // ms; a step takes some

/** What a stepper's element carries: gzip and base64, or repetitive JSON would fill the page. */
const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

/** Why this page cannot run Python; null: it can. */
const whyNotLive = () => {
  if (LIVE.reason) return LIVE.reason;
  if (location.protocol === "file:") return "recorded run (live needs a web server: make serve)";
  if (!window.Worker || !window.WebAssembly) return "recorded run (this browser has no WebAssembly)";
  return null;
};

/** A session in a worker of its own: two steppers share nothing. */
class WorkerTransport {
  #worker = null;
  #pending = new Map();
  #onDeath = () => {};
  #nextId = 0;

  /** @param {boolean} isFixed  the run of a real engine: it was recorded, and cannot be run again */
  constructor(isFixed) {
    const reason = isFixed ? "recorded run of a real engine" : whyNotLive();
    this.capabilities = { live: false, lookahead: LOOKAHEAD, fixed: isFixed };
    if (reason) this.capabilities.reason = reason;
    else Object.assign(this.capabilities, { size: LIVE.size, start: (fn) => this.#start(fn) });
  }

  onDeath(callback) {
    this.#onDeath = callback;
  }

  /** Load Python; a second call starts a fresh worker. */
  #start(onProgress) {
    this.#worker?.terminate();
    const worker = new Worker(new URL(LIVE.worker, SCRIPT), { type: "module" });
    this.#worker = worker;
    return new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => {
        if (data.loaded !== undefined) onProgress(Math.min(data.loaded, LIVE.size), LIVE.size);
        else if (data.ready) resolve();
        else if (data.id !== undefined) this.#settle(data);
        else this.#die(new Error(data.failed), reject);
      };
      worker.onerror = (event) => {
        event.preventDefault();
        this.#die(new Error(event.message || "the worker could not be loaded."), reject);
      };
      const [pyodide, packages] = [LIVE.pyodide, LIVE.packages].map((path) => new URL(path, SCRIPT).href);
      worker.postMessage({ load: { pyodide, packages, modules: LIVE.modules } });
    });
  }

  #settle({ id, text }) {
    const { resolve, timer } = this.#pending.get(id);
    clearTimeout(timer);
    this.#pending.delete(id);
    resolve(JSON.parse(text));
  }

  #die(error, rejectStart) {
    this.#worker.terminate();
    rejectStart(error);
    for (const { reject, timer } of this.#pending.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#pending.clear();
    this.#onDeath(error);
  }

  send(message) {
    this.#nextId += 1;
    const id = this.#nextId;
    return new Promise((resolve, reject) => {
      const late = () => this.#worker.onerror(new ErrorEvent("error", { message: "it does not answer.", cancelable: true }));
      this.#pending.set(id, { resolve, reject, timer: setTimeout(late, ANSWER_TIMEOUT) });
      this.#worker.postMessage({ id, text: JSON.stringify({ ...message, id }) });
    });
  }
}

/** What makes two scenarios the same run, whatever their titles. */
const runOf = ({ config, requests, seed = 0 }) =>
  JSON.stringify([Object.entries(config).sort(), requests, seed]);

/** Open what a link holds: a recorded run if it is one of the page's, else one to be computed. */
const openLink = (handle, element, entries) => {
  const prefix = `#${element.id}=`;
  if (!location.hash.startsWith(prefix)) return;
  const { scenario, errors } = fromFragment(location.hash.slice(prefix.length));
  element.scrollIntoView();
  if (!scenario) {
    handle.say(`The link was not opened. ${errors.slice(0, 5).map(({ field, message }) => `${field} ${message}`.trim()).join("; ")}.`);
    return;
  }
  const known = entries.find((entry) => runOf(entry.scenario) === runOf(scenario));
  handle.load(scenario, known?.recording ?? null, scenario.step ?? 0);
};

const start = async (element) => {
  const entries = await unpack(element.querySelector(".mv-stepper-data").textContent);
  const [first] = entries;
  const { step } = element.dataset;
  const handle = mount(element, {
    transport: new WorkerTransport(Boolean(first.fixed)),
    scenario: first.scenario,
    recording: first.recording,
    scenarios: entries,
    options: { canShare: !first.fixed, key: element.id, step: step === undefined ? undefined : Number(step) },
  });
  element.minivllm = handle;
  if (!first.fixed) {
    openLink(handle, element, entries);
    window.addEventListener("hashchange", () => openLink(handle, element, entries));
  }
  element.dispatchEvent(new CustomEvent("minivllm-ready"));
};

const startAll = () => {
  for (const element of document.querySelectorAll(".mv-stepper-embed")) {
    start(element).catch((error) => {
      element.append(`This stepper could not be drawn: ${error.message}`);
      console.error(error);
    });
  }
};

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
else startAll();
