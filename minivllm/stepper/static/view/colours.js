/* Who has which colour and pattern, and the colours themselves. */

const NUM_COLOURS = 8;

/** A colour and a pattern for each request, in order of first appearance; runs of a stepper share it. */
export class Identities {
  #indices = new Map();

  index(id) {
    if (!this.#indices.has(id)) this.#indices.set(id, this.#indices.size);
    return this.#indices.get(id);
  }

  has(id) {
    return this.#indices.has(id);
  }

  colour(id) {
    return this.index(id) % NUM_COLOURS;
  }

  /** Eight colours do for eight requests; the next eight are striped, and so on. */
  pattern(id) {
    return Math.floor(this.index(id) / NUM_COLOURS) % 4;
  }

  /** Give a node the look of a request. */
  paint(node, id) {
    node.dataset.colour = this.colour(id);
    node.dataset.pattern = this.pattern(id);
  }
}

/** Colours as the canvas needs them: resolved, and again after the theme has changed. */
export class Colours {
  #cache = new Map();
  theme = 0;

  constructor(probe) {
    this.probe = probe;
  }

  get(name) {
    if (!this.#cache.has(name)) {
      this.probe.style.color = `var(--mv-${name})`;
      this.#cache.set(name, getComputedStyle(this.probe).color);
    }
    return this.#cache.get(name);
  }

  refresh() {
    this.#cache.clear();
    this.theme += 1;
  }
}
