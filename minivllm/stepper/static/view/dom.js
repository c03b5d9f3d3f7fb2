/* Elements, and what every panel is made of. What comes from outside becomes text, never markup. */

const SVG = "http://www.w3.org/2000/svg";
export const DARK = "(prefers-color-scheme: dark)";
const STILL = "(prefers-reduced-motion: reduce)";

const setProperty = (node, name, value) => {
  if (value === null || value === undefined || value === false) return;
  if (name === "on") for (const [type, fn] of Object.entries(value)) node.addEventListener(type, fn);
  else if (name === "data") Object.assign(node.dataset, value);
  else if (name === "style") {
    for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
  } else node.setAttribute(name, value === true ? "" : value);
};

/** An element; strings among the children become text. */
export const h = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) setProperty(node, name, value);
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
};

/** An SVG element. */
export const s = (tag, attributes, ...children) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

export const setText = (node, text) => {
  if (node.textContent !== text) node.textContent = text;
};

export const setAttribute = (node, name, value) => {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== value) node.setAttribute(name, value);
};

export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
export const plural = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
export const isStill = () => matchMedia(STILL).matches;

/** Replace the children of `parent`, unless what they show is what they showed. */
export const refill = (parent, content, make) => {
  const signature = JSON.stringify(content);
  if (parent.shown === signature) return false;
  parent.shown = signature;
  parent.replaceChildren(...make());
  return true;
};

/** Make the children of `parent` those of `items`, in order; an item keeps its node. */
export const reconcile = (parent, nodes, items, keyOf, make, update) => {
  const focused = document.activeElement;
  const keys = new Set(items.map(keyOf));
  for (const [key, node] of nodes) {
    if (keys.has(key)) continue;
    if (node.parentElement === parent) node.remove();
    if (!node.isConnected) nodes.delete(key);
  }
  let next = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (!nodes.has(key)) nodes.set(key, make(item));
    const node = nodes.get(key);
    update(node, item);
    // One that has left the front for a place further back waits for its turn; the rest stay put.
    if (next && next !== node && next.nextElementSibling === node) next = node;
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (focused !== document.activeElement && focused?.isConnected) focused.focus({ preventScroll: true });
};

const ICONS = {
  first: "M5 4v12M16 4l-8 6 8 6z",
  back: "M14 4l-8 6 8 6z",
  step: "M6 4l8 6-8 6z",
  last: "M15 4v12M4 4l8 6-8 6z",
  play: "M5 3.5l11 6.5-11 6.5z",
  pause: "M6 4v12M14 4v12",
};

export const icon = (name) => {
  const path = s("path", { d: ICONS[name], "stroke-width": 2.2, "stroke-linejoin": "round" });
  return s("svg", { viewBox: "0 0 20 20", class: "mv-icon", "aria-hidden": "true" }, path);
};

let serial = 0;
export const newId = (prefix) => `${prefix}-${(serial += 1)}`;

// Each draws one snapshot of one run: `draw(view)` with view = {run, step, snapshot, previous, ...}.
// Nodes with data-req or data-block are what hovering, focusing and clicking work on.

export const panel = (name, title, ...children) =>
  h("section", { class: `mv-panel mv-${name}`, "aria-label": title }, ...children);

export const heading = (title, aside) => h("div", { class: "mv-head" }, h("span", { class: "mv-title" }, title), aside);

/** A request's name in its colour. */
export const chip = (identities, id) => {
  const node = h("span", { class: "mv-chip", data: { req: id } }, id);
  identities.paint(node, id);
  return node;
};

/** What the signs of a panel mean: pairs of a kind and its words. */
export const legend = (entries) =>
  h("ul", { class: "mv-legend" }, entries.map(([kind, text]) => h("li", {}, h("i", { data: { kind } }), text)));
