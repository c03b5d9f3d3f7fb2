/* The scheduler in the reader's browser: Python (Pyodide) in a worker, with minivllm's own files.
 *
 * Messages in: {load: {pyodide, packages, modules}} once, then {id, text} with a session message as
 * JSON. Messages out: {loaded} in bytes, {ready}, {id, text}, and {failed} when there is no going on.
 */

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

/** Python, with minivllm's scheduler and its session; its answer function. */
const load = async ({ pyodide: folder, packages, modules }) => {
  self.fetch = countingFetch;
  const [{ loadPyodide }, archive] = await Promise.all([
    import(new URL("pyodide.mjs", folder).href),
    countingFetch(packages).then((response) => response.arrayBuffer()),
  ]);
  const python = await loadPyodide({ indexURL: folder });
  count(modules); // imports are no fetches
  python.unpackArchive(archive, "zip");
  return python.runPython(`
from minivllm.stepper.session import StepperSession

StepperSession().handle_json
`);
};

self.addEventListener("message", async ({ data }) => {
  try {
    if (data.load) {
      handle = await load(data.load);
      self.postMessage({ ready: true });
    } else self.postMessage({ id: data.id, text: handle(data.text) });
  } catch (error) {
    self.postMessage({ failed: String(error.message ?? error).trim().split("\n").at(-1) });
  }
});
