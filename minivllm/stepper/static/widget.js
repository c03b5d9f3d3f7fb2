/* The stepper in a notebook: an anywidget module around the view.
 *
 * minivllm/stepper/modules.py joins the view and this file into one module. The session is in the
 * kernel; messages and answers travel as the widget's custom messages. Python may step too, and the
 * same widget may be shown twice: an answer that this view did not ask for is taken as news.
 */

import { mount } from "./view/index.js";

const ANSWER_TIMEOUT = 120_000; // ms; a step of a real model may take long
const DEAD = "The kernel does not answer. Run the cell again to go on; what you see stays.";

/** A promise for each message that waits for its answer. */
class KernelTransport {
  #model;
  #pending = new Map();
  #number = 0;
  #key = crypto.randomUUID?.() ?? String(Math.random());
  #onDeath = () => {};

  constructor(model, onNews) {
    this.#model = model;
    this.capabilities = { live: true, lookahead: 0, fixed: model.get("is_live") };
    this.listener = (message) => {
      if (message.kind !== "answer") return;
      const { kind, ...answer } = message;
      const waiting = this.#pending.get(answer.id);
      if (waiting) {
        this.#pending.delete(answer.id);
        clearTimeout(waiting.timer);
        waiting.resolve(answer);
      } else if (answer.ok) onNews(answer);
    };
    model.on("msg:custom", this.listener);
  }

  onDeath(callback) {
    this.#onDeath = callback;
  }

  send(message) {
    this.#number += 1;
    const id = `${this.#key}/${this.#number}`;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new Error(DEAD));
        this.#onDeath(new Error(DEAD));
      }, ANSWER_TIMEOUT);
      this.#pending.set(id, { resolve, timer });
      this.#model.send({ ...message, id });
    });
  }

  close() {
    this.#model.off("msg:custom", this.listener);
    for (const { timer } of this.#pending.values()) clearTimeout(timer);
  }
}

const render = async ({ model, el }) => {
  let handle = null;
  const early = []; // news that comes before there is a view to show it
  const onNews = (answer) => (handle ? handle.take(answer) : early.push(answer));
  const transport = new KernelTransport(model, onNews);
  const { main, fork, scenarios } = await transport.send({ type: "state" });
  transport.capabilities.prompts = Boolean(main.prompts);
  const root = document.createElement("div");
  el.append(root);
  handle = mount(root, {
    transport,
    scenario: main.scenario,
    recording: { ...main, isOpen: true },
    scenarios,
    options: { step: model.get("step") },
  });
  if (fork) handle.take(fork);
  early.forEach((answer) => handle.take(answer));

  const set = (name, value) => {
    if (model.get(name) === value) return;
    model.set(name, value);
    model.save_changes();
  };
  handle.on("step", ({ step }) => set("step", step));
  handle.on("select", ({ request }) => set("selection", request));
  const onStep = () => handle.state.step === model.get("step") || handle.gotoStep(model.get("step"));
  const onSelection = () =>
    handle.state.selection === model.get("selection") || handle.select(model.get("selection"));
  model.on("change:step", onStep);
  model.on("change:selection", onSelection);
  onSelection();
  root.dispatchEvent(new CustomEvent("minivllm-ready", { bubbles: true }));

  return () => {
    model.off("change:step", onStep);
    model.off("change:selection", onSelection);
    transport.close();
    handle.destroy();
  };
};

export default { render };
