/* The Python of a page on the reader's computer: a kernel of the Jupyter server of `make live`.
 *
 * For the page's cells it is what PagePython of python.js is. It talks with @jupyterlab/services
 * (tools/get_services.py), which is loaded when the reader starts Python, not before.
 */

import { closePage } from "./python.js";

/* global LIVE, SCRIPT */

const MAX_PRINTED = 1_000_000; // characters of a cell: a page has to draw them

let client = null;

/** The library, once asked for. */
const loadServices = () => {
  client ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = new URL(LIVE.services, SCRIPT).href;
    script.onload = () => resolve(window["@jupyterlab/services"]);
    script.onerror = () => reject(new Error("@jupyterlab/services could not be loaded from this site."));
    document.head.append(script);
  });
  return client;
};

/** The server has ended, or another has taken its place. */
const goneError = () =>
  Object.assign(new Error("The server of “make live” does not answer. Start it again, and open the address that it then prints."), { isGone: true });

export class KernelPython extends EventTarget {
  /** What runs now and may take any time: a cell. */
  busy = false;
  canInterrupt = true;
  #server;
  #page;
  #settings = null;
  #session = null;
  #kernel = null;
  #starting = null;
  #endLife = () => {};
  #life = null; // rejected when this session ends, whatever waits for it
  #last = Promise.resolve(); // the end of the session before

  /** @param server  from liveServer; @param page  whose folder the kernel works in */
  constructor(server, page) {
    super();
    this.#server = server;
    this.#page = page;
    window.addEventListener("pagehide", () => {
      if (this.#session) this.#ask(`api/sessions/${this.#session.id}`, { method: "DELETE", keepalive: true }).catch(() => {});
    });
  }

  get isRunning() {
    return this.#starting !== null;
  }

  /** Start a kernel, if none runs. */
  async start() {
    if (!this.#starting) {
      this.#life = new Promise((_, reject) => {
        this.#endLife = reject;
      });
      this.#life.catch(() => {});
      this.#starting = this.#orEnd(this.#connect(this.#life));
    }
    const starting = this.#starting;
    try {
      await starting;
    } catch (error) {
      if (this.#starting === starting) this.#starting = null;
      throw error;
    }
  }

  #orEnd(promise) {
    return Promise.race([promise, this.#life]);
  }

  #ask(path, options = {}) {
    return fetch(this.#server.url + path, { ...options, headers: { Authorization: `token ${this.#server.token}` } });
  }

  async #connect(life) {
    if (this.#kernel) return; // its process had ended, and the server has started another
    closePage();
    const { KernelConnection, ServerConnection, SessionAPI } = await loadServices();
    const { url, socket, token } = this.#server;
    const serverSettings = ServerConnection.makeSettings({ baseUrl: url, wsUrl: socket, token, appendToken: true });
    await this.#last;
    const path = `${this.#page}-${crypto.randomUUID()}`; // each page has a kernel of its own
    let session;
    try {
      session = await SessionAPI.startSession({ path, name: path, type: "notebook", kernel: { name: "python3" } }, serverSettings);
    } catch (error) {
      throw error instanceof ServerConnection.NetworkError || error.response?.status === 403 ? goneError() : error;
    }
    const end = () => SessionAPI.shutdownSession(session.id, serverSettings).catch(() => {});
    if (life !== this.#life || !this.#starting) {
      end(); // it was stopped before it began
      return;
    }
    const kernel = new KernelConnection({ model: session.kernel, serverSettings, handleComms: false });
    this.#session = { id: session.id, end };
    this.#kernel = kernel;
    kernel.statusChanged.connect((_, status) => {
      const error = new Error("its process has ended");
      if (status === "dead") this.#die(error, kernel);
      else if (status === "autorestarting" && kernel === this.#kernel) this.#tell(error);
    });
    kernel.connectionStatusChanged.connect((_, status) => {
      if (status !== "connected") this.#look(kernel);
    });
    await kernel.info;
  }

  /** The connection is lost: is the server? */
  async #look(kernel) {
    if (kernel !== this.#kernel) return;
    const isThere = await this.#ask("api/status").then((response) => response.ok, () => false);
    if (!isThere) this.#die(goneError(), kernel);
    else if (kernel.connectionStatus === "disconnected") this.#die(new Error("the connection to it was lost"), kernel);
  }

  #die(error, kernel = this.#kernel) {
    if (kernel !== this.#kernel) return; // of a session that has ended
    const session = this.#session;
    this.#session = null;
    this.#kernel = null;
    kernel?.dispose();
    if (session && !error.isGone) this.#last = session.end();
    this.#tell(error);
  }

  /** What ran is lost: to whoever waits for it, and to the page. */
  #tell(error) {
    this.#starting = null;
    this.busy = false;
    this.#endLife(error);
    this.dispatchEvent(new CustomEvent("death", { detail: error }));
  }

  /** End it, whatever it does; what it knew is lost. */
  kill(why) {
    if (this.isRunning) this.#die(new Error(why));
  }

  /** Raise KeyboardInterrupt in what runs. */
  interrupt() {
    const kernel = this.#kernel;
    kernel?.interrupt().catch(() => this.#look(kernel));
  }

  /** Run a cell, or complete a text, as minivllm_cells.py does. */
  send(to, { call, arguments: { code, text } }) {
    if (!this.#kernel) return Promise.reject(new Error("Python is not running."));
    return this.#orEnd(call === "run" ? this.#run(code) : this.#complete(text));
  }

  async #run(code) {
    const begin = performance.now();
    const future = this.#kernel.requestExecute({ code, allow_stdin: false });
    const tell = (detail) => this.dispatchEvent(new CustomEvent("output", { detail }));
    let printed = 0;
    future.onIOPub = ({ header: { msg_type: kind }, content }) => {
      if (["display_data", "execute_result", "error", "clear_output"].includes(kind)) tell({ output_type: kind, ...content });
      if (kind !== "stream") return;
      const room = MAX_PRINTED - printed;
      printed += content.text.length;
      if (room > 0) tell({ output_type: kind, name: content.name, text: content.text.slice(0, room) });
    };
    const { content } = await future.done;
    if (printed > MAX_PRINTED) tell({ output_type: "stream", name: "stdout", text: `\n… ${(printed - MAX_PRINTED).toLocaleString("en")} more characters are not shown.\n` });
    const ok = content.status === "ok";
    return { ok, count: content.execution_count, seconds: (performance.now() - begin) / 1000, ...(ok ? {} : { error: content.ename ?? content.status }) };
  }

  async #complete(text) {
    const { content } = await this.#kernel.requestComplete({ code: text, cursor_pos: [...text].length });
    if (content.status !== "ok") return null;
    const start = [...text].slice(0, content.cursor_start).join("").length; // Python counts characters
    const path = /^.*\./.exec(text.slice(start))?.[0] ?? ""; // `run.` of `run.history`
    const isWhole = content.matches.every((match) => match.startsWith(path));
    const options = content.matches.map((match) => ({ label: isWhole ? match.slice(path.length) : match }));
    return { start: start + (isWhole ? path.length : 0), options };
  }
}
