/* Which model an engine of this page has that is given no name: the reader chooses, before anything is
 * loaded, and the browser keeps the choice for all pages.
 *
 * LIVE.models has `choices`, what each model is called, `default` and `small`, two of them, and
 * `files`, with the bytes of each.
 */

/* global LIVE */

const CHOICE = "minivllm:model"; // where the browser keeps it
const CHOSEN = "minivllm-model-chosen"; // an event of the window
const LITTLE_MEMORY = 2; // GiB, as browsers tell them; the large model takes nearly one

/** A phone, or another device with little memory. */
const isSmallDevice = () =>
  (navigator.deviceMemory ?? Infinity) <= LITTLE_MEMORY || window.matchMedia("(pointer: coarse) and (max-width: 48rem)").matches;

const keptChoice = () => {
  try {
    return localStorage.getItem(CHOICE);
  } catch {
    return null;
  }
};

/** The chosen model's name; before a choice, that of the one that suits the device; null: there is none. */
export const chosenModel = () => {
  const { choices, default: large, small } = LIVE.models ?? {};
  if (!choices) return null;
  const chosen = window.minivllmModelChosen ?? keptChoice();
  if (Object.hasOwn(choices, chosen ?? "")) return chosen;
  return isSmallDevice() ? small : large;
};

/** Whether it is the one whose outputs the book prints. */
export const isPrintedModel = () => chosenModel() === (LIVE.models?.default ?? null);

const chooseModel = (name) => {
  window.minivllmModelChosen = name; // where the browser keeps nothing, until the page is left
  try {
    localStorage.setItem(CHOICE, name);
  } catch {
    /* it may not */
  }
  window.dispatchEvent(new CustomEvent(CHOSEN, { detail: name }));
};

/** `callback(name)` at each choice. */
export const onChoice = (callback) => window.addEventListener(CHOSEN, ({ detail }) => callback(detail));

/** Bytes in words. */
export const inMegabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** A model in a line. */
const aboutModel = (name) => {
  const { size, unpacked } = LIVE.models.files[name];
  const sizes = `${inMegabytes(size)} to load, ${inMegabytes(unpacked)} in memory`;
  if (name === LIVE.models.default) return `${sizes}. What the book prints is from this model.`;
  return `${sizes}, so a phone can run it. It has read nothing but made-up stories and knows nothing else; what it writes is not what the book prints.`;
};

let numChoosers = 0;

/** The choice, as a group of radio buttons. */
export const modelChooser = () => {
  numChoosers += 1;
  const group = document.createElement("fieldset");
  group.className = "mv-model-choice";
  group.addEventListener("keydown", (event) => event.stopPropagation()); // the site has keys too
  const legend = document.createElement("legend");
  legend.textContent = "Which model shall run?";
  group.append(legend);
  const inputs = Object.entries(LIVE.models.choices).map(([name, called]) => {
    const input = Object.assign(document.createElement("input"), { type: "radio", value: name, name: `mv-model-${numChoosers}` });
    input.addEventListener("change", () => chooseModel(name));
    const words = document.createElement("span");
    words.append(Object.assign(document.createElement("strong"), { textContent: called }), `: ${aboutModel(name)}`);
    const label = document.createElement("label");
    label.append(input, words);
    group.append(label);
    return input;
  });
  const show = (chosen) => {
    for (const input of inputs) input.checked = input.value === chosen;
  };
  show(chosenModel());
  onChoice(show);
  return group;
};
