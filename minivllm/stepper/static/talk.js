/* “Talk to it”: the reader's prompts for a model in the page (book/live/minivllm_talk_session.py). */

import { chosenModel, inMegabytes, modelChooser, onChoice } from "./model_choice.js";
import { pagePython, whyNotLive } from "./python.js";

const tag = (name, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
};

/** Ask the session; what it needs the page to load is loaded, and told. */
const askModel = async (message, say) => {
  const python = pagePython();
  for (;;) {
    const answer = await python.send("talk", message);
    if (!answer.ask) {
      if (!answer.ok) throw new Error(answer.errors.map((error) => error.message).join(" "));
      return answer;
    }
    const words = await python.loadModel(JSON.parse(answer.ask).model, (loaded, size) => {
      say(`Loading the model: ${inMegabytes(loaded)} of ${inMegabytes(size)}`, loaded / size);
    });
    say(words || "Unpacking the weights …");
  }
};

/** Fill a place with three fields and a button; `show(answer)` puts the run that began in view. */
export const offerTalk = (place, show) => {
  const { prompts, reason } = JSON.parse(place.dataset.about);
  const status = tag("p", { className: "mv-talk-status" });
  status.setAttribute("role", "status");
  const why = whyNotLive() ?? reason;
  if (why) {
    status.textContent = `Prompts of your own cannot run here: ${why}`;
    place.append(status);
    return;
  }
  const progress = tag("progress", { max: 1, value: 0, hidden: true });
  progress.setAttribute("aria-label", "Loading");
  const say = (text, share = null) => {
    status.textContent = text;
    progress.hidden = share === null;
    progress.value = share ?? 0;
  };
  const fields = prompts[chosenModel()].map((prompt) => tag("input", { type: "text", value: prompt, required: true, maxLength: 300 }));
  onChoice((name) => {
    const examples = Object.values(prompts).flat();
    fields.forEach((field, index) => {
      if (examples.includes(field.value)) field.value = prompts[name][index];
    });
  });
  const button = tag("button", { type: "submit", className: "mv-button", textContent: "▶ Run these three in this page" });
  const rows = fields.map((field, index) => tag("label", {}, `${"ABC"[index]} `, field));
  const form = tag("form", { className: "mv-talk-form" }, ...rows, modelChooser(), button);
  form.addEventListener("keydown", (event) => event.stopPropagation()); // the site has keys too
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      say("Loading Python …", 0);
      const python = pagePython();
      const isNew = !python.isRunning;
      const starting = python.start((loaded, all) => say("Loading Python …", loaded / all));
      if (isNew) python.expectModel(chosenModel());
      await starting;
      say("Starting the engine …");
      show(await askModel({ type: "talk", prompts: fields.map((field) => field.value) }, say));
      place.nextElementSibling.scrollIntoView({ block: "nearest" });
      say("The engine waits for its first step: Step, or Play.");
    } catch (error) {
      say(error.message);
    }
    button.disabled = false;
  });
  place.append(form, progress, status);
  say("The model comes from this site when you press the button, and your browser keeps it. Nothing leaves the page.");
};
