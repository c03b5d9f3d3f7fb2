/* The Python of a page, in the reader's browser: Pyodide in a worker, with minivllm's own files.
 *
 * Messages in: {load: {pyodide, packages, archives, modules, chosen, interrupt}} once, then {id, to, text} with
 * a message to one of its sessions as JSON (book/live/minivllm_page.py). Messages out: {loaded} in
 * bytes, {ready}, {id, text}; {output} of a cell that runs; {fetching} of an archive that something
 * imports; and {failed} when there is no going on. {id, model} loads a model: {id, part, of} in bytes,
 * then {id, text}; {expect: model}, that one will be needed. {chosen} names the model of engines that are
 * given none.
 */

/* Models that are loaded and that no engine has taken yet, for book/live/minivllm_model.py. */
self.minivllmModels = new Map();
self.minivllmChosen = null;

const fetchFromNetwork = self.fetch.bind(self);
let handle = null;
let loaded = 0;

const count = (bytes) => {
  loaded += bytes;
  self.postMessage({ loaded });
};

/** Fetch, and count the bytes of a copy: the browser keeps compiled code for the original alone.
 *
 * A file that does not come is told from here: Python's loader would wait for it for ever.
 */
const countingFetch = async (...request) => {
  const name = String(request[0].url ?? request[0]).split("/").at(-1);
  try {
    const response = await fetchFromNetwork(...request);
    if (!response.ok) throw new Error(`the server says ${response.status}`);
    countBytes(response.clone());
    return response;
  } catch (error) {
    self.postMessage({ failed: `${name} could not be loaded (${error.message}).` });
    throw error;
  }
};

const countBytes = async (copy) => {
  const reader = copy.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    count(part.value.byteLength);
  }
};

/** Python, with minivllm's scheduler and its sessions; its answer function. */
const load = async ({ pyodide: folder, packages, archives = {}, models = {}, modules, interrupt }) => {
  self.fetch = countingFetch;
  const [{ loadPyodide }, archive] = await Promise.all([
    import(new URL("pyodide.mjs", folder).href),
    countingFetch(packages).then((response) => response.arrayBuffer()),
  ]);
  const python = await loadPyodide({ indexURL: folder });
  count(modules); // imports are no fetches
  python.unpackArchive(archive, "zip");
  self.fetch = fetchFromNetwork;
  if (interrupt) python.setInterruptBuffer(interrupt);
  return python.pyimport("minivllm_page").start(JSON.stringify(archives), JSON.stringify(models));
};

/* --- models --------------------------------------------------------------------------------------- */

const CACHE = "minivllm-models";
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

/** An instance of a program that a site has, with its module. */
const instantiate = async (url, imports) => {
  const response = await fetchFromNetwork(url);
  if (!response.ok) throw new Error(`The model's program could not be loaded: the server says ${response.status}.`);
  const made = await WebAssembly.instantiate(await response.arrayBuffer(), imports);
  made.instance.exports._initialize();
  return made;
};

/** The kernels of a model, in a memory of its own: {exports, module}; no module, if it is for one thread. */
const makeMachine = async ({ kernels, threads }) => {
  const memory = sharedMemory();
  if (memory) {
    try {
      const { module, instance } = await instantiate(threads, { env: { memory } });
      return { exports: { ...instance.exports, memory }, module };
    } catch {
      // the other program needs less
    }
  }
  try {
    const { instance } = await instantiate(kernels, {});
    return { exports: instance.exports, module: null };
  } catch (error) {
    if (!(error instanceof WebAssembly.CompileError)) throw error;
    throw new Error("This browser's WebAssembly has no SIMD, which the model needs: Chrome has it since 91, Firefox since 89, Safari since 16.4.");
  }
};

/* --- threads: Workers that compute with this one, where the page is cross-origin isolated ------------ */

const MAX_THREADS = 4; // decoding waits for memory: more gain little, and the page needs a processor too
const START_MS = 3000;
const HELPER = `self.onmessage = ({ data: { module, memory, stack } }) => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  self.postMessage("ready");
  exports.help(); // for good
};`;

/** Memory for several threads, of pages as tools/live_model.py has them; null: there is but one. */
const sharedMemory = () => {
  if (!self.crossOriginIsolated || self.navigator.hardwareConcurrency < 2) return null;
  for (const maximum of [65535, 32768, 16384]) {
    try {
      return new WebAssembly.Memory({ initial: 512, maximum, shared: true });
    } catch {
      // the browser has no room for so much: less, then
    }
  }
  return null;
};

/** Start threads. A step counts those that have come; one that fails is missing, and nothing else. */
const startHelpers = (module, exports) => {
  const url = URL.createObjectURL(new Blob([HELPER], { type: "text/javascript" }));
  const workers = [];
  const starts = [];
  for (let i = 1; i < Math.min(self.navigator.hardwareConcurrency, MAX_THREADS); i += 1) {
    const stack = exports.new_stack();
    if (!stack) break;
    try {
      const worker = new Worker(url);
      workers.push(worker);
      starts.push(
        new Promise((resolve) => {
          worker.onmessage = resolve;
          worker.onerror = (event) => {
            event.preventDefault();
            resolve();
          };
        }),
      );
      worker.postMessage({ module, memory: exports.memory, stack });
    } catch {
      break; // no Worker in a Worker
    }
  }
  const late = new Promise((resolve) => setTimeout(resolve, START_MS));
  const ready = Promise.race([Promise.all(starts), late]).then(() => URL.revokeObjectURL(url));
  return { ready, end: () => workers.forEach((worker) => worker.terminate()) };
};

/* --- files ---------------------------------------------------------------------------------------- */

/** What the browser has kept of a file; null: nothing, or it keeps nothing. */
const kept = async (url) => {
  try {
    return (await (await self.caches.open(CACHE)).match(url)) ?? null;
  } catch {
    return null;
  }
};

/** Keep a file; why it could not be kept, or null. */
const keep = async (url, bytes) => {
  if (!self.caches) return "This page may not keep it: the next visit loads it again.";
  try {
    const cache = await self.caches.open(CACHE);
    const old = new URL(url).pathname; // of another build
    for (const request of await cache.keys()) if (new URL(request.url).pathname === old) await cache.delete(request);
    await cache.put(url, new Response(bytes));
    return null;
  } catch (error) {
    const why = error.name === "QuotaExceededError" ? "there is no room" : error.message;
    return `The browser could not keep it (${why}): the next visit loads it again.`;
  }
};

/** All bytes of a response, counted as they come. */
const readAll = async (response, size, name, onPart) => {
  const bytes = new Uint8Array(size);
  const reader = response.body.getReader();
  let filled = 0;
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (filled + part.value.byteLength > size) throw new Error("it is larger than it should be");
      bytes.set(part.value, filled);
      filled += part.value.byteLength;
      onPart(filled);
    }
    if (filled < size) throw new Error("the connection ended");
  } catch (error) {
    throw new Error(`Loading ${name} stopped after ${megabytes(filled)} of ${megabytes(size)} (${error.message}). Run the cell again to load it again.`);
  }
  return bytes;
};

/** Whether bytes have a digest; null: the browser does not tell (it digests on https and localhost). */
const hasDigest = async (bytes, sha256) => {
  if (!self.crypto?.subtle) return null;
  const digest = new Uint8Array(await self.crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
};

/** A model's program, its table of contents, and its weights if the browser has kept them. */
const openModel = async ({ name, contents: url, ...programs }, onPart = () => {}) => {
  const [response, { exports, module }] = await Promise.all([fetchFromNetwork(url), makeMachine(programs)]);
  if (!response.ok) throw new Error(`${name} could not be loaded: the server says ${response.status}.`);
  const contents = await response.text();
  const { file, size, sha256 } = JSON.parse(contents);
  const weights = new URL(`${file}?v=${sha256.slice(0, 16)}`, url).href;
  let bytes = null;
  let verified = null;
  const old = await kept(weights);
  if (old) {
    bytes = await readAll(old, size, name, onPart).catch(() => null);
    verified = bytes && (await hasDigest(bytes, sha256));
    if (verified === false) bytes = null; // spoilt where it was kept: from the site, then
  }
  return { name, exports, module, contents, size, sha256, weights, bytes, verified };
};

/* Models that will be needed, by name: promises of what `openModel` gives. */
const expected = new Map();

const expectModel = (model) => {
  const opening = openModel(model);
  opening.catch(() => {}); // told when somebody asks for it
  expected.set(model.name, opening);
};

/** Load a model. Returns words for the reader, or "". */
const loadModel = async (model, onPart) => {
  const opening = expected.get(model.name) ?? openModel(model, onPart);
  expected.delete(model.name); // if it fails, the next time begins anew
  const opened = await opening;
  const helpers = opened.module && startHelpers(opened.module, opened.exports); // while the weights come
  try {
    const words = await takeModel(opened, onPart);
    await helpers?.ready;
    return words;
  } catch (error) {
    helpers?.end();
    throw error;
  }
};

const takeModel = async (opened, onPart) => {
  const { name, exports, contents, size, sha256, weights } = opened;
  let { bytes, verified } = opened;
  let words = "";
  if (!bytes) {
    const fresh = await fetchFromNetwork(weights).catch((error) => ({ ok: false, status: error.message }));
    if (!fresh.ok) throw new Error(`${name} could not be loaded: ${fresh.status}.`);
    bytes = await readAll(fresh, size, name, onPart);
    verified = await hasDigest(bytes, sha256);
    if (verified === false) {
      throw new Error(`${name} is not the file that this site was built with: its SHA-256 is another. Reload the page, or build the site again.`);
    }
    words = (await keep(weights, bytes)) ?? "";
  }
  self.minivllmModels.set(name, { exports, contents, bytes, verified: verified === true });
  return words;
};

const answerModel = async ({ id, model }) => {
  let told = 0;
  const onPart = (part) => {
    if (part - told < model.size / 200 && part < model.size) return;
    told = part;
    self.postMessage({ id, part });
  };
  try {
    self.postMessage({ id, text: JSON.stringify({ words: await loadModel(model, onPart) }) });
  } catch (error) {
    self.postMessage({ id, text: JSON.stringify({ failed: error.message }) });
  }
};

self.addEventListener("message", async ({ data }) => {
  try {
    if (data.load) {
      self.minivllmChosen = data.load.chosen;
      handle = await load(data.load);
      self.postMessage({ ready: true });
    } else if (data.expect) expectModel(data.expect);
    else if (data.chosen) self.minivllmChosen = data.chosen;
    else if (data.model) await answerModel(data);
    else self.postMessage({ id: data.id, text: handle(data.to ?? "stepper", data.text) });
  } catch (error) {
    self.postMessage({ failed: String(error.message ?? error).trim().split("\n").at(-1) });
  }
});
