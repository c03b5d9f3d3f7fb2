/* The panel of the block pool, the block tables and the free queue. */

import { chip, clamp, h, heading, legend, panel, refill, s, setAttribute, setText } from "./dom.js";

/** At most three characters of a request's id, to stand in a block. */
const shortId = (id) => {
  if (id.length <= 3) return id;
  const digits = /\d{1,2}$/.exec(id);
  return digits ? id[0] + digits[0] : id.slice(0, 3);
};

const MAX_DOM_BLOCKS = 400; // beyond, the pool is a canvas
const MAX_TABLE = 48; // block table entries that are listed
const STATE_WORDS = {
  0: "the null block: a placeholder that nobody owns",
  ".": "free, empty",
  e: "free, but its tokens are still cached (evictable)",
  p: "in use, partly filled",
  f: "in use, full",
  c: "in use, full, cached",
};

/** How much of each block is filled, 0 to 1, and whether this step wrote into it. */
const fillsOf = (snapshot, blockSize) => {
  const fills = new Map();
  for (const { num_computed_tokens, num_scheduled_tokens, block_table } of Object.values(snapshot.requests)) {
    const start = num_computed_tokens - num_scheduled_tokens;
    block_table.forEach((block, index) => {
      const slots = clamp(num_computed_tokens - index * blockSize, 0, blockSize);
      const fresh = slots > 0 && index * blockSize + slots > start;
      const old = fills.get(block);
      fills.set(block, { fill: Math.max(slots / blockSize, old?.fill ?? 0), fresh: fresh || old?.fresh || false });
    });
  }
  return fills;
};

/** Blocks that a victim of this step had to give. */
const takenBlocks = (victims, previous, snapshot) => {
  const taken = new Set();
  for (const id of victims.keys()) {
    for (const block of previous.requests[id]?.block_table ?? []) {
      if (!snapshot.blocks.owners[block]?.includes(id)) taken.add(block);
    }
  }
  return taken;
};

/** A block as a sentence. */
const describeBlock = (snapshot, id) => {
  const { state, ref_cnt: refs, owners, block_hash: hashes, free_queue: queue } = snapshot.blocks;
  const parts = [`Block ${id}: ${STATE_WORDS[state[id]]}`];
  if (owners[id].length) parts.push(`owned by ${owners[id].join(", ")} (ref count ${refs[id]})`);
  const place = queue.indexOf(id);
  if (place >= 0) parts.push(`number ${place + 1} in the free queue`);
  if (hashes[id]) parts.push(`hash ${hashes[id]}…`);
  return `${parts.join("; ")}.`;
};

/** The block that an arrow key leads to from block `id`; null, if another key was pressed. */
const blockAfter = (event, id, perRow, numBlocks) => {
  const jump = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: perRow, ArrowUp: -perRow }[event.key];
  if (!jump) return null;
  event.preventDefault();
  event.stopPropagation();
  return clamp(id + jump, 0, numBlocks - 1);
};

/** A small pool: one button for each block. */
class BlockGrid {
  #cells = [];

  constructor(identities) {
    this.identities = identities;
    this.element = h("div", { class: "mv-grid", role: "group", "aria-label": "Blocks; arrow keys move between them", on: { keydown: (event) => this.#move(event) } });
  }

  draw({ snapshot, run, fills, taken }) {
    const numBlocks = snapshot.blocks.state.length;
    if (this.#cells.length !== numBlocks) {
      this.#cells = Array.from({ length: numBlocks }, (_, id) => this.#makeCell(id));
      this.element.replaceChildren(...this.#cells);
    }
    this.element.dataset.size = numBlocks <= 41 ? "large" : numBlocks <= 121 ? "medium" : "small";
    this.snapshot = snapshot;
    this.#cells.forEach((cell, id) => this.#updateCell(cell, id, { snapshot, run, fills, taken }));
  }

  #makeCell(id) {
    return h(
      "button",
      { type: "button", class: "mv-cell", tabindex: id === 1 ? 0 : -1, data: { block: id } },
      h("span", { class: "mv-fill" }),
      h("span", { class: "mv-block-id" }, String(id)),
      " ",
      h("span", { class: "mv-owner" }),
      " ",
      h("span", { class: "mv-refs" }),
    );
  }

  #updateCell(cell, id, { snapshot, fills, taken }) {
    const { state, ref_cnt: refs, owners } = snapshot.blocks;
    const { fill = 0, fresh = false } = fills.get(id) ?? {};
    const signature = [state[id], refs[id], owners[id], fill, fresh, taken.has(id)].join("|");
    if (cell.dataset.signature === signature) return;
    cell.dataset.signature = signature;
    Object.assign(cell.dataset, { state: state[id], refs: refs[id], fresh, taken: taken.has(id), owners: owners[id].join(" ") });
    const [bar, , owner, count] = cell.children;
    bar.style.height = `${100 * fill}%`;
    bar.style.background = this.#background(owners[id]);
    if (owners[id].length) this.identities.paint(cell, owners[id][0]);
    else delete cell.dataset.colour;
    setText(owner, state[id] === "0" ? "∅" : this.#ownerWord(owners[id]));
    setText(count, refs[id] > 1 && owners[id].length < 3 ? `×${refs[id]}` : "");
    // What is written in it comes first: that is how someone who speaks to the computer calls it.
    const written = [id, owner.textContent, count.textContent].filter((word) => word !== "").join(" ");
    setAttribute(cell, "aria-label", `${written}. ${describeBlock(snapshot, id)}`);
  }

  #ownerWord(owners) {
    return owners.length > 2 ? `×${owners.length}` : owners.map(shortId).join("+");
  }

  /** A shared block shows its owners as bands. */
  #background(owners) {
    if (owners.length < 2) return "";
    const bands = owners.slice(0, 4).map((id, i, all) => {
      const colour = `var(--mv-c${this.identities.colour(id)})`;
      return `${colour} ${(100 * i) / all.length}% ${(100 * (i + 1)) / all.length}%`;
    });
    return `linear-gradient(115deg, ${bands.join(", ")})`;
  }

  #move(event) {
    const id = Number(event.target.dataset?.block);
    const perRow = Math.max(1, this.#cells.filter((cell) => cell.offsetTop === this.#cells[0].offsetTop).length);
    const next = blockAfter(event, id, perRow, this.#cells.length);
    if (next === null) return;
    this.#cells[id].tabIndex = -1;
    this.#cells[next].tabIndex = 0;
    this.#cells[next].focus();
  }

  mark(isLit) {
    this.#cells.forEach((cell, id) => cell.classList.toggle("is-lit", isLit !== null && isLit(id)));
  }

  rectOf(id) {
    return this.#cells[id]?.getBoundingClientRect();
  }
}

/** A large pool: a canvas, with a cursor for the keyboard. */
class BlockCanvas {
  #lit = null;
  #cursor = 1;
  #width = 0;
  #painted = [];

  constructor(identities, colours, onBlock) {
    this.identities = identities;
    this.colours = colours;
    this.onBlock = onBlock;
    this.canvas = h("canvas", { class: "mv-pool-canvas" });
    this.element = h(
      "div",
      {
        class: "mv-pool-wrap",
        tabindex: 0,
        role: "application",
        "aria-label": "Blocks; arrow keys move between them",
        on: {
          pointermove: (event) => onBlock(this.#blockAt(event)),
          pointerleave: () => onBlock(null),
          focus: () => onBlock(this.#cursor),
          blur: () => onBlock(null),
          keydown: (event) => this.#move(event),
        },
      },
      this.canvas,
    );
  }

  draw(view) {
    this.view = view;
    this.#layout();
    this.#paint();
  }

  /** The width has changed, or the theme: measure and paint all of it again. */
  reset() {
    this.#width = 0;
    this.#painted = [];
  }

  #layout() {
    const numBlocks = this.view.snapshot.blocks.state.length;
    if (!this.#width) this.#width = this.element.clientWidth || 320;
    const width = this.#width;
    this.size = clamp(Math.floor(Math.sqrt((width * 380) / numBlocks)), 5, 18);
    this.perRow = Math.max(1, Math.floor(width / this.size));
    const height = Math.ceil(numBlocks / this.perRow) * this.size;
    const ratio = window.devicePixelRatio || 1;
    const [w, hgt] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== w || this.canvas.height !== hgt) {
      this.canvas.width = w;
      this.canvas.height = hgt;
      this.canvas.style.height = `${height}px`;
      this.#painted = [];
    }
    this.ratio = ratio;
  }

  /** Blocks that look as they did are left alone: most of them, in most steps. */
  #paint() {
    const { snapshot, fills, taken } = this.view;
    const { state, owners } = snapshot.blocks;
    const context = this.canvas.getContext("2d");
    context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    const cursor = document.activeElement === this.element ? this.#cursor : -1;
    for (let id = 0; id < state.length; id += 1) {
      const fill = fills.get(id)?.fill ?? 0;
      const isDim = this.#lit !== null && !this.#lit(id);
      const look = `${state[id]}${owners[id].join()}/${fill}${isDim}${taken.has(id)}${id === cursor}`;
      if (this.#painted[id] === look) continue;
      this.#painted[id] = look;
      this.#paintBlock(context, id, { fill, isDim, isCursor: id === cursor });
    }
  }

  #paintBlock(context, id, { fill, isDim, isCursor }) {
    const { state, owners } = this.view.snapshot.blocks;
    const [size, inner] = [this.size, this.size - 1];
    const x = (id % this.perRow) * size;
    const y = Math.floor(id / this.perRow) * size;
    context.clearRect(x, y, size, size);
    context.globalAlpha = isDim ? 0.22 : 1;
    context.fillStyle = this.colours.get("free");
    context.fillRect(x, y, inner, inner);
    const share = fill * inner;
    owners[id].slice(0, 3).forEach((owner, i, all) => {
      context.fillStyle = this.colours.get(`c${this.identities.colour(owner)}`);
      context.fillRect(x + (inner * i) / all.length, y + inner - share, inner / all.length, share);
    });
    if (inner >= 8) this.#mark(context, { x, y, inner, state: state[id], owners: owners[id] });
    if (this.view.taken.has(id)) this.#frame(context, "alarm", x, y, inner);
    if (isCursor) this.#frame(context, "ink", x, y, inner);
    context.globalAlpha = 1;
  }

  /** The second cues, where there is room: a tick for the pattern, a corner for cached. */
  #mark(context, { x, y, inner, state, owners }) {
    context.fillStyle = this.colours.get("ink");
    const pattern = owners.length === 1 ? this.identities.pattern(owners[0]) : 0;
    if (pattern) context.fillRect(x + inner / 2 - pattern, y + inner - 2, 2 * pattern, 2);
    if (state === "c" || state === "e") context.fillRect(x + inner - 2, y, 2, 2);
  }

  #frame(context, colour, x, y, inner) {
    context.strokeStyle = this.colours.get(colour);
    context.lineWidth = 1.6;
    context.strokeRect(x + 0.8, y + 0.8, inner - 1.6, inner - 1.6);
  }

  #blockAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.size);
    const id = Math.floor((event.clientY - box.top) / this.size) * this.perRow + column;
    return column < this.perRow && id >= 0 && id < this.view.snapshot.blocks.state.length ? id : null;
  }

  #move(event) {
    const next = blockAfter(event, this.#cursor, this.perRow, this.view.snapshot.blocks.state.length);
    if (next === null) return;
    this.#cursor = next;
    this.onBlock(this.#cursor);
    setAttribute(this.element, "aria-label", describeBlock(this.view.snapshot, this.#cursor));
  }

  mark(isLit) {
    const isChanged = this.#lit !== isLit || isLit !== null;
    this.#lit = isLit;
    if (isChanged) this.#paint();
  }

  rectOf(id) {
    const box = this.canvas.getBoundingClientRect();
    const left = box.left + (id % this.perRow) * this.size;
    const top = box.top + Math.floor(id / this.perRow) * this.size;
    return new DOMRect(left, top, this.size - 1, this.size - 1);
  }
}

const BLOCK_LEGEND = [
  ["full", "full"],
  ["part", "partly filled"],
  ["cached", "cached"],
  ["shared", "shared"],
  ["evictable", "free, still cached"],
  ["free", "free"],
  ["fresh", "written now"],
  ["taken", "taken from the victim"],
];

/** Every physical block, the block table of the request in focus, and the free queue. */
export class PoolPanel {
  constructor({ identities, colours, onBlock }) {
    this.identities = identities;
    this.grid = new BlockGrid(identities);
    this.canvas = new BlockCanvas(identities, colours, onBlock);
    this.usage = h("span", { class: "mv-aside" });
    this.table = h("div", { class: "mv-table" });
    this.lines = s("svg", { class: "mv-lines", "aria-hidden": "true" });
    this.holder = h("div", { class: "mv-holder" });
    this.readout = h("p", { class: "mv-readout" });
    this.queue = h("ol", { class: "mv-free-queue" });
    this.cpu = h("div", { class: "mv-cpu" });
    this.element = panel(
      "pool",
      "Block pool",
      heading("Block pool", this.usage),
      this.table,
      this.holder,
      this.readout,
      legend(BLOCK_LEGEND),
      h("div", { class: "mv-queue-line" }, h("span", { class: "mv-title" }, "Free queue"), this.queue),
      this.cpu,
      this.lines,
    );
  }

  draw(view) {
    const { snapshot, run, victims, previous } = view;
    const blocks = snapshot.blocks;
    this.view = { ...view, fills: fillsOf(snapshot, run.config.block_size), taken: takenBlocks(victims, previous, snapshot) };
    const surface = blocks.state.length > MAX_DOM_BLOCKS ? this.canvas : this.grid;
    if (this.surface !== surface) {
      this.surface = surface;
      this.holder.replaceChildren(surface.element);
    }
    surface.draw(this.view);
    const usable = blocks.state.length - 1;
    const free = blocks.free_queue.length;
    const cached = blocks.free_queue.filter((id) => blocks.state[id] === "e").length;
    setText(this.usage, `${usable - free} of ${usable} in use${cached ? `, ${cached} of the free still cached` : ""}`);
    this.#drawQueue(blocks);
    this.#drawCpu();
  }

  reset() {
    this.canvas.reset();
  }

  #drawQueue({ free_queue: queue, state }) {
    const most = 14;
    const first = queue.slice(0, most).map((id) => [id, state[id]]);
    refill(this.queue, [first, queue.length], () => {
      const items = first.map(([id, kind]) =>
        h("li", { data: { block: id, state: kind }, title: kind === "e" ? "still cached" : "empty" }, String(id)));
      if (queue.length > most) items.push(h("li", { class: "mv-rest" }, `+${queue.length - most}`));
      if (!queue.length) items.push(h("li", { class: "mv-rest" }, "empty: no block to give"));
      return items;
    });
  }

  /** The CPU pool of preemption by swap, and this step's copies. */
  #drawCpu() {
    const { snapshot } = this.view;
    const { num_blocks: numBlocks, owners } = snapshot.cpu_blocks;
    this.cpu.hidden = numBlocks === 0;
    if (!numBlocks) return;
    const used = owners.filter((owner) => owner !== null).length;
    const copied = new Map();
    const lines = [];
    for (const event of snapshot.events) {
      const isOut = event.type === "swapped_out";
      if (!isOut && event.type !== "swapped_in") continue;
      for (const [from, to] of event.blocks) copied.set(isOut ? to : from, isOut ? "in" : "out");
      const pairs = event.blocks.slice(0, 8).map(([from, to]) => `${from}→${to}`).join(" ");
      lines.push(h("p", { class: "mv-copies" }, isOut ? "GPU→CPU " : "CPU→GPU ", chip(this.identities, event.request_id), ` ${pairs}${event.blocks.length > 8 ? " …" : ""}`));
    }
    const cells = owners.map((owner, id) => {
      const cell = h("span", { class: "mv-cpu-cell", data: { cpu: id, copied: copied.get(id) ?? "" }, title: `CPU block ${id}: ${owner ?? "free"}` }, owner ? shortId(owner) : "");
      if (owner) {
        this.identities.paint(cell, owner);
        cell.dataset.req = owner;
      }
      return cell;
    });
    const words = h("span", { class: "mv-aside" }, `${used} of ${numBlocks} in use`);
    const label = owners.map((owner, id) => (owner ? `${id}: ${owner}` : "")).filter(Boolean).join(", ");
    this.cpu.replaceChildren(
      heading("CPU pool", words),
      h("div", { class: "mv-cpu-grid", role: "img", "aria-label": `CPU pool: ${label || "empty"}` }, cells),
      ...lines,
    );
  }

  /** Show what the reader points at. @param {{request: ?string, block: ?number}} focus */
  highlight(focus) {
    if (!this.view) return;
    const { snapshot } = this.view;
    const { owners } = snapshot.blocks;
    const { request, block } = focus;
    const isTracing = request !== null || block !== null;
    const isLit = (id) => id === block || (request !== null && owners[id].includes(request));
    this.element.classList.toggle("is-tracing", isTracing);
    this.surface.mark(isTracing ? isLit : null);
    const isKnown = block !== null && block < owners.length;
    setText(this.readout, isKnown ? describeBlock(snapshot, block) : "");
    this.#drawTable(request);
  }

  #drawTable(id) {
    const row = id === null ? undefined : this.view.snapshot.requests[id];
    if (this.lines.firstChild) this.lines.replaceChildren();
    if (!row) {
      const hint = id === null ? "Point at a request to trace its block table, at a block to see its owners." : `${id} is not here in this step.`;
      refill(this.table, hint, () => [h("span", { class: "mv-hint" }, hint)]);
      return;
    }
    this.table.shown = null;
    const entries = row.block_table.slice(0, MAX_TABLE).map((block, index) => h("li", { data: { block } }, h("small", {}, String(index)), String(block)));
    const rest = row.block_table.length - entries.length;
    const words = !row.block_table.length ? [row.cpu_block_table.length ? `its blocks are on the CPU: ${row.cpu_block_table.join(", ")}` : "holds no block"] : [];
    this.table.replaceChildren(
      h("span", { class: "mv-hint" }, "Block table of ", chip(this.identities, id), ", logical above physical ", ...words),
      h("ol", { class: "mv-entries" }, entries, rest > 0 ? h("li", { class: "mv-rest" }, `+${rest}`) : null),
    );
    this.#drawLines(entries, row.block_table, id);
  }

  #drawLines(entries, table, id) {
    const frame = this.element.getBoundingClientRect();
    const colour = `var(--mv-c${this.identities.colour(id)})`;
    entries.forEach((entry, index) => {
      const from = entry.getBoundingClientRect();
      const to = this.surface.rectOf(table[index]);
      if (!to) return;
      const [x1, y1] = [from.left + from.width / 2 - frame.left, from.bottom - frame.top];
      const [x2, y2] = [to.left + to.width / 2 - frame.left, to.top + 2 - frame.top];
      const bend = Math.max(10, (y2 - y1) * 0.5);
      this.lines.append(s("path", { d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`, style: `stroke:${colour}` }));
    });
  }
}
