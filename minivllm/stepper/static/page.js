/* The steppers of a static page: recorded runs first, the scheduler itself on demand.
 *
 * book/_ext/minivllm_stepper.py joins the view and this file into one classic script (which works
 * from disk too, where a module does not) and sets LIVE and SCRIPT before it (see python.js).
 */

import { fromFragment, mount } from "./view/index.js";
import { pagePython, whyNotLive } from "./python.js";
import { offerTalk } from "./talk.js";

const LOOKAHEAD = 12; // steps fetched ahead of the reader
const ANSWER_TIMEOUT = 20_000; // ms; a step takes some

/** What a stepper's element carries: gzip and base64, or repetitive JSON would fill the page. */
const unpack = async (text) => {
  const bytes = Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

let numSessions = 0;

/** A session of its own in the page's Python: two steppers share nothing but the worker. */
class WorkerTransport {
  #to = "";
  #started = false;
  #onDeath = () => {};

  /** @param {boolean} isFixed  the run of a real engine: it was recorded, and cannot be run again */
  constructor(isFixed) {
    const reason = isFixed ? "recorded run of a real engine" : whyNotLive() && `recorded run (${whyNotLive()})`;
    this.capabilities = { live: false, lookahead: LOOKAHEAD, fixed: isFixed };
    if (reason) {
      this.capabilities.reason = reason;
      return;
    }
    const python = pagePython();
    Object.assign(this.capabilities, { size: python.size, start: (fn) => this.#start(fn) });
    python.addEventListener("death", ({ detail }) => {
      if (!this.#started) return;
      this.#started = false;
      this.#onDeath(detail);
    });
  }

  onDeath(callback) {
    this.#onDeath = callback;
  }

  /** Load Python; a second call starts a fresh session. */
  async #start(onProgress) {
    numSessions += 1;
    this.#to = `stepper-${numSessions}`;
    this.#started = true;
    await pagePython().start(onProgress);
  }

  send(message) {
    return pagePython().send(this.#to, { ...message, id: 0 }, ANSWER_TIMEOUT);
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

// --- a recording of a real server, dropped on a stepper or chosen

const MAX_FILE = 64 << 20;
const STEPS_SHOWN = 1;

/** The session of a run that goes on (a recording that is open, a model): it cannot go back. */
const runTransport = (to) => ({
  capabilities: { live: true, lookahead: 0, fixed: true },
  onDeath(callback) {
    pagePython().addEventListener("death", ({ detail }) => callback(detail), { once: true });
  },
  send: (message) => pagePython().send(to, { ...message, id: 0 }),
});

const ask = async (message) => pagePython().send("recording", { ...message, id: 0 });

const must = async (message) => {
  const answer = await ask(message);
  if (!answer.ok) throw new Error(answer.errors.map((error) => error.message).join(" "));
  return answer;
};

/** A file as base64: no byte of it leaves the browser. */
const base64Of = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onerror = () => reject(new Error(`${file.name} could not be read.`));
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.readAsDataURL(file);
  });

/** Where the words about a recording stand, and the step to open it at: below its stepper. */
const recordingBar = (element) => {
  if (element.nextElementSibling?.classList.contains("mv-recording")) return element.nextElementSibling;
  const bar = document.createElement("div");
  bar.className = "mv-recording";
  bar.append(Object.assign(document.createElement("p"), { role: "status" }));
  element.after(bar);
  return bar;
};

const say = (element, text) => {
  recordingBar(element).querySelector("p").textContent = text;
};

/** Replay to a step, tell how far it is, and show it. */
const showStep = async (element, num) => {
  for (let reached = false, at = 0; !reached; ) {
    ({ at, reached } = await must({ type: "seek", step: num }));
    say(element, `Replayed ${at.toLocaleString("en")} of ${num.toLocaleString("en")} steps.`);
  }
  showRun(element, await must({ type: "open" }), "recording");
};

/** Put a run that goes on in a stepper's place. */
const showRun = (element, answer, to) => {
  element.replaceChildren();
  element.minivllm = mount(element, {
    transport: runTransport(to),
    scenario: answer.scenario,
    recording: { ...answer, isOpen: true },
    scenarios: [],
    options: { canShare: false, key: element.id, step: STEPS_SHOWN - 1 },
  });
};

const chooseStep = (element, name, numSteps, first) => {
  const bar = recordingBar(element);
  bar.querySelector("form")?.remove();
  const form = document.createElement("form");
  const label = document.createElement("label");
  const input = Object.assign(document.createElement("input"), { type: "number", min: 0, max: numSteps - 1, value: first, required: true });
  const button = Object.assign(document.createElement("button"), { type: "submit", className: "mv-button", textContent: "Show" });
  label.append(`${name}, ${numSteps.toLocaleString("en")} steps; from step `, input);
  form.append(label, button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await showStep(element, Number(input.value));
      say(element, "");
    } catch (error) {
      say(element, error.message);
    }
    button.disabled = false;
  });
  bar.append(form);
};

/** Open a file of minivllm.vllm.Recorder in place of what the stepper shows. */
const openRecording = async (element, file) => {
  const why = whyNotLive();
  if (why) return say(element, `A recording cannot be opened here: ${why}.`);
  if (file.size > MAX_FILE) return say(element, `${file.name} has ${Math.ceil(file.size / 1e6)} MB; at most ${MAX_FILE >> 20} are read.`);
  try {
    say(element, "Loading Python …");
    await pagePython().start();
    say(element, `Reading ${file.name} …`);
    const { name, num_steps: numSteps, notes } = await must({ type: "load", name: file.name, data: await base64Of(file) });
    await showStep(element, 0);
    chooseStep(element, name, numSteps, 0);
    say(element, notes.join(" "));
  } catch (error) {
    say(element, `${file.name} was not opened: ${error.message}`);
  }
};

const takeDrops = (element) => {
  const hasFile = ({ dataTransfer }) => [...(dataTransfer?.types ?? [])].includes("Files");
  element.addEventListener("dragover", (event) => {
    if (hasFile(event)) event.preventDefault();
  });
  element.addEventListener("drop", (event) => {
    if (!hasFile(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) openRecording(element, file);
  });
};

/** A button for those who do not drag: a page's `.mv-open-recording` names the stepper it opens in. */
const offerFiles = (place) => {
  const element = document.querySelector(".mv-stepper-embed");
  const input = Object.assign(document.createElement("input"), { type: "file", accept: ".gz,.jsonl" });
  const label = document.createElement("label");
  label.append("Open a recording: ", input);
  // A phone is narrower than a browser's button and its words; the label is as wide as they are.
  label.style.maxWidth = input.style.maxWidth = "100%";
  place.append(label);
  input.addEventListener("change", () => {
    if (input.files[0] && element) openRecording(element, input.files[0]);
  });
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
  takeDrops(element);
  element.dispatchEvent(new CustomEvent("minivllm-ready"));
};

const startOne = (element) =>
  start(element).catch((error) => {
    element.append(`This stepper could not be drawn: ${error.message}`);
    console.error(error);
  });

/** For steppers that a live cell shows. */
window.minivllmSteppers = { start: startOne };

const startAll = () => {
  for (const element of document.querySelectorAll(".mv-stepper-embed:not([data-seen])")) startOne(element);
  document.querySelectorAll(".mv-open-recording").forEach(offerFiles);
  for (const place of document.querySelectorAll(".mv-talk")) {
    const element = place.parentElement.querySelector(".mv-stepper-embed#talk");
    offerTalk(place, (answer) => showRun(element, answer, "talk"));
  }
};

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startAll);
else startAll();
