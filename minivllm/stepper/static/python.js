/* The Python of a page: Pyodide in a worker, one for all steppers and live cells (`pagePython`).
 *
 * LIVE says what it loads from the site's own folder, {worker, pyodide, packages, archives, modules,
 * size}, or {reason} why there is none; `modules` is how many of the `size` bytes are modules, which
 * load all at once. SCRIPT is the address that its paths start from.
 */

import { chosenModel, onChoice } from "./model_choice.js";

/* global LIVE, SCRIPT */

/** Why this page cannot run Python; null: it can. */
export const whyNotLive = () => {
  if (LIVE.reason) return LIVE.reason;
  if (location.protocol === "file:") return "live needs a web server: make serve";
  if (!window.Worker || !window.WebAssembly) return "this browser has no WebAssembly";
  return null;
};

/** The Jupyter server of `make live`, {url, socket, token}, where a cell of the page needs one; else null.
 *
 * book/_static/minivllm.js keeps what that command hands over.
 */
export const liveServer = () => {
  if (!document.querySelector('.mv-code-bar:not([data-needs=""])')) return null;
  try {
    const { port, token } = JSON.parse(sessionStorage.getItem("minivllm-live"));
    return { url: `http://127.0.0.1:${port}/`, socket: `ws://127.0.0.1:${port}/`, token };
  } catch {
    return null; // nothing was handed over, or storage is off
  }
};

/* A cell's code and what it shows are not always their reader's own: they may come with a link. */
const PRINT = "'unsafe-hashes' 'sha256-MguIPR6qNR8D3B+eAlK+bIRTZe8t3wkOY4B/56Me9FU='"; // window.print(), the theme's button
const POLICY = `default-src 'self' data: blob:; script-src 'self' blob: 'wasm-unsafe-eval' ${PRINT}; style-src 'self' 'unsafe-inline'; form-action 'self'`;

/** From now on the page and its workers reach this site and its live server, and no script in an output runs. */
export const closePage = () => {
  if (document.querySelector("meta[http-equiv=Content-Security-Policy]")) return;
  const meta = document.createElement("meta");
  meta.setAttribute("http-equiv", "Content-Security-Policy");
  const server = liveServer();
  const connect = server ? `; connect-src 'self' data: blob: ${server.url} ${server.socket}` : "";
  meta.setAttribute("content", POLICY + connect);
  document.head.append(meta);
};

/** A worker that is bound by the page's policy: one from a file would have its own. */
const makeWorker = (url) => {
  closePage();
  const blob = URL.createObjectURL(new Blob([`import ${JSON.stringify(url)};`], { type: "text/javascript" }));
  return new Worker(blob, { type: "module" });
};

export class PagePython extends EventTarget {
  #worker = null;
  #pending = new Map();
  #nextId = 0;
  #starting = null;
  #interrupt = null; // shared with the worker, where the page may have such memory
  size = LIVE.size;
  /** What runs now and may take any time: a cell. */
  busy = false;

  constructor() {
    super();
    onChoice((chosen) => this.#worker?.postMessage({ chosen })); // for the engines made from now on
  }

  get isRunning() {
    return this.#starting !== null;
  }

  get canInterrupt() {
    return this.#interrupt !== null;
  }

  /** Load Python, if it is not loaded; `onProgress(loaded, size)` in bytes. */
  async start(onProgress = () => {}) {
    const tell = ({ detail }) => onProgress(detail, LIVE.size);
    this.addEventListener("loaded", tell);
    this.#starting ??= this.#load();
    await this.#starting.finally(() => this.removeEventListener("loaded", tell));
  }

  #load() {
    const worker = makeWorker(new URL(LIVE.worker, SCRIPT).href);
    this.#worker = worker;
    this.#interrupt = self.crossOriginIsolated ? new Uint8Array(new SharedArrayBuffer(1)) : null;
    const tell = (type, detail) => this.dispatchEvent(new CustomEvent(type, { detail }));
    return new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => {
        if (data.loaded !== undefined) tell("loaded", Math.min(data.loaded, LIVE.size));
        else if (data.output) tell("output", data.output);
        else if (data.fetching) tell("fetching", data.fetching);
        else if (data.ready) resolve();
        else if (data.part !== undefined) this.#pending.get(data.id)?.onPart(data.part);
        else if (data.id !== undefined) this.#settle(data);
        else this.#die(new Error(data.failed), reject);
      };
      worker.onerror = (event) => {
        event.preventDefault();
        this.#die(new Error(event.message || "the worker could not be loaded."), reject);
      };
      const at = (path) => new URL(path, SCRIPT).href;
      const archives = Object.fromEntries(Object.entries(LIVE.archives).map(([path, names]) => [at(path), names]));
      const { modules } = LIVE;
      const models = LIVE.models.reason ? { "": LIVE.models.reason } : LIVE.models.files;
      worker.postMessage({ load: { pyodide: at(LIVE.pyodide), packages: at(LIVE.packages), archives, models, modules, chosen: chosenModel(), interrupt: this.#interrupt } });
    });
  }

  #settle({ id, text }) {
    const { resolve, timer } = this.#pending.get(id);
    clearInterval(timer);
    this.#pending.delete(id);
    resolve(JSON.parse(text));
  }

  #die(error, rejectStart = () => {}) {
    this.#worker?.terminate();
    this.#worker = null;
    this.#starting = null;
    this.busy = false;
    rejectStart(error);
    for (const { reject, timer } of this.#pending.values()) {
      clearInterval(timer);
      reject(error);
    }
    this.#pending.clear();
    this.dispatchEvent(new CustomEvent("death", { detail: error }));
  }

  /** End it, whatever it does; what it knew is lost. */
  kill(why) {
    if (this.isRunning) this.#die(new Error(why));
  }

  /** Raise KeyboardInterrupt in what runs; only where `canInterrupt`. */
  interrupt() {
    this.#interrupt[0] = 2; // SIGINT
  }

  /** What the worker has to know to load a model. */
  #modelOf(name) {
    const at = (path) => new URL(path, new URL(LIVE.models.folder, SCRIPT)).href;
    const { contents, size } = LIVE.models.files[name];
    const { kernels, threads } = LIVE.models;
    return { name, size, contents: at(contents), kernels: at(kernels), threads: at(threads) };
  }

  /** A model will be needed: what the browser has kept of it is read while Python starts. */
  expectModel(name) {
    this.#worker?.postMessage({ expect: this.#modelOf(name) });
  }

  /** Load a model into the worker; `onPart(loaded, size)` in bytes. Returns words for the reader, or "". */
  async loadModel(name, onPart = () => {}) {
    const model = this.#modelOf(name);
    const { size } = model;
    this.#nextId += 1;
    const id = this.#nextId;
    const { words, failed } = await new Promise((resolve, reject) => {
      this.#pending.set(id, { resolve, reject, timer: null, onPart: (part) => onPart(part, size) });
      this.#worker.postMessage({ id, model });
    });
    if (failed) throw new Error(failed);
    return words;
  }

  /** Ask the session `to`; it ends the worker when no answer comes within `timeout` ms of its own time. */
  send(to, message, timeout = Infinity) {
    this.#nextId += 1;
    const id = this.#nextId;
    return new Promise((resolve, reject) => {
      if (!this.#worker) {
        reject(new Error("Python is not running."));
        return;
      }
      let left = timeout;
      const tick = () => {
        if (!this.busy) left -= 1000; // while a cell runs, others wait
        if (left <= 0) this.#die(new Error("it does not answer."));
      };
      const timer = timeout === Infinity ? null : setInterval(tick, 1000);
      this.#pending.set(id, { resolve, reject, timer });
      this.#worker.postMessage({ id, to, text: JSON.stringify(message) });
    });
  }
}

/** The page's Python; each script of the page gets the same. */
export const pagePython = () => (window.minivllmPython ??= new PagePython());
