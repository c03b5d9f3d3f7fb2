/* The panel of all steps so far. */

import { chip, clamp, h, heading, legend, panel, plural, refill, setAttribute, setText } from "./dom.js";

const LABEL_WIDTH = 58; // px, left of the heat map
const LANES = [
  { name: "batch", value: ({ stats }) => stats.num_scheduled_reqs },
  { name: "tokens", value: ({ stats }) => stats.num_scheduled_tokens },
  { name: "KV use", value: ({ stats }) => stats.kv_cache_usage, isShare: true },
];
const STEP_LEGEND = [
  ["prefill", "several tokens (prompt)"],
  ["decode", "one token (decode)"],
  ["waiting", "waiting"],
  ["preempted", "preempted"],
  ["finished", "finished"],
];
const LANE_HEIGHT = 26;
const LANE_GAP = 7;

/** Steps × requests as a heat map, with three lanes below; a click jumps. */
export class TimelinePanel {
  #layout = {};
  #numPainted = 0; // steps up to here have their column

  constructor({ identities, colours, onJump }) {
    this.identities = identities;
    this.colours = colours;
    this.onJump = onJump;
    this.base = h("canvas", { class: "mv-timeline-canvas", role: "img", "aria-label": "Timeline" });
    this.cursor = h("div", { class: "mv-cursor" });
    this.future = h("div", { class: "mv-future" });
    this.readout = h("span", { class: "mv-aside" });
    this.moments = h("div", { class: "mv-moments" });
    this.wrap = h(
      "div",
      { class: "mv-timeline-wrap", on: { click: (e) => this.#jump(e), pointermove: (e) => this.#point(e), pointerleave: () => this.#rest() } },
      this.base,
      this.future,
      this.cursor,
    );
    this.element = panel("timeline", "Timeline", heading("Timeline", this.readout), this.wrap, legend(STEP_LEGEND), this.moments);
  }

  draw(view) {
    this.view = view;
    const { run, step } = view;
    this.width ||= this.wrap.clientWidth || 600;
    const layout = this.#measure(run, step);
    const isSame = run === this.run && JSON.stringify(layout) === JSON.stringify(this.#layout);
    if (!isSame || run.steps.length < this.#numPainted) this.#begin(layout, run);
    this.#paintMore(run);
    this.#placeCursor(run.at(step));
    this.#rest();
    this.#drawMoments(run, step);
  }

  reset() {
    this.width = 0;
  }

  /** Columns for more steps than there are yet, so that a growing run seldom rescales. */
  #measure(run, step) {
    const [numSteps, numRows] = [run.steps.length, run.ids.length];
    const room = this.width - LABEL_WIDTH;
    const wanted = run.isOver ? Math.max(numSteps, 24) : 32 * 2 ** Math.max(0, Math.ceil(Math.log2((numSteps + 1) / 32)));
    const columns = Math.min(wanted, Math.floor(room / 2));
    return {
      columns,
      columnWidth: room / columns,
      first: numSteps > columns ? clamp(run.at(step) - Math.floor(columns / 2), 0, numSteps - columns) : 0,
      numRows,
      rowHeight: clamp(300 / Math.max(numRows, 1), 0.6, 17),
      mosts: LANES.map(({ value, isShare }) => (isShare ? 1 : Math.max(1, ...run.steps.map(value)))),
      version: run.version,
      theme: this.colours.theme,
      ratio: window.devicePixelRatio || 1,
    };
  }

  /** An empty canvas of the right size, with its labels. */
  #begin(layout, run) {
    this.run = run;
    this.#layout = layout;
    this.#numPainted = layout.first;
    const { rowHeight, numRows, ratio } = layout;
    this.heatHeight = rowHeight * Math.max(numRows, 1);
    const height = this.heatHeight + 6 + LANES.length * (LANE_HEIGHT + LANE_GAP) + 16;
    this.base.width = Math.round(this.width * ratio);
    this.base.height = Math.round(height * ratio);
    this.base.style.height = `${height}px`;
    this.context = this.base.getContext("2d");
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.#paintLabels(run, height);
  }

  #paintLabels(run, height) {
    const { context, colours } = this;
    const { rowHeight, columns, columnWidth, first } = this.#layout;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    const every = Math.ceil(12 / rowHeight);
    run.ids.forEach((id, index) => {
      if (index % every) return;
      if (every === 1) {
        context.fillStyle = colours.get(`c${this.identities.colour(id)}`);
        context.fillRect(0, index * rowHeight + 2, 3, rowHeight - 4);
      }
      context.fillStyle = colours.get("ink");
      // A label stands beside the middle of its row, or, where rows are thin, below its first.
      const middle = every === 1 ? (index + 0.5) * rowHeight : index * rowHeight + 6;
      context.fillText(id.length > 7 ? `${id.slice(0, 6)}…` : id, 7, middle);
    });
    LANES.forEach((lane, index) => {
      const top = this.#laneTop(index);
      context.fillStyle = colours.get("muted");
      context.fillText(lane.name, 7, top + LANE_HEIGHT - 6);
      context.fillStyle = colours.get("grid");
      context.fillRect(LABEL_WIDTH, top + LANE_HEIGHT, columns * columnWidth, 1);
    });
    context.fillStyle = colours.get("muted");
    context.textAlign = "center";
    const tick = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * columnWidth >= 44) ?? 1000;
    for (let step = Math.ceil(first / tick) * tick; step < first + columns; step += tick) {
      context.fillText(String(step), this.#x(step) + columnWidth / 2, height - 6);
    }
    context.textAlign = "start";
  }

  #laneTop(index) {
    return this.heatHeight + 6 + index * (LANE_HEIGHT + LANE_GAP);
  }

  #x(step) {
    return LABEL_WIDTH + (step - this.#layout.first) * this.#layout.columnWidth;
  }

  #paintMore(run) {
    const { first, columns } = this.#layout;
    const index = new Map(run.ids.map((id, i) => [id, i]));
    const last = Math.min(run.steps.length, first + columns);
    for (let step = this.#numPainted; step < last; step += 1) this.#paintColumn(run.steps[step], step, index);
    this.#numPainted = last;
  }

  #paintColumn(snapshot, step, index) {
    const { context, colours } = this;
    const { rowHeight, columnWidth, mosts } = this.#layout;
    const x = this.#x(step);
    const gap = columnWidth > 5 ? 1 : 0;
    const w = Math.max(columnWidth - gap, 0.8);
    const pad = rowHeight > 6 ? 1 : 0;
    for (const [id, row] of Object.entries(snapshot.requests)) {
      const y = index.get(id) * rowHeight;
      const { num_scheduled_tokens: tokens } = row;
      if (tokens) {
        const height = tokens > 1 || rowHeight < 5 ? rowHeight - 2 * pad : (rowHeight - 2 * pad) * 0.42;
        context.fillStyle = colours.get(`c${this.identities.colour(id)}`);
        context.globalAlpha = tokens > 1 ? clamp(0.55 + Math.log2(tokens) / 12, 0.6, 1) : rowHeight < 5 ? 0.5 : 0.9;
        context.fillRect(x, y + (rowHeight - height) / 2, w, height);
        context.globalAlpha = 1;
      } else {
        context.fillStyle = colours.get("waiting");
        context.fillRect(x, y + rowHeight / 2 - 0.5, columnWidth, 1);
      }
    }
    for (const event of snapshot.events) this.#paintMark(event, x + w / 2, (index.get(event.request_id) + 0.5) * rowHeight);
    LANES.forEach((lane, i) => {
      const height = (lane.value(snapshot) / mosts[i]) * LANE_HEIGHT;
      context.fillStyle = colours.get("lane");
      context.fillRect(x, this.#laneTop(i) + LANE_HEIGHT - height, w, height);
    });
  }

  #paintMark(event, x, y) {
    const { context, colours } = this;
    const r = clamp(this.#layout.rowHeight * 0.3, 1.2, 4.5);
    if (event.type === "preempted") {
      context.strokeStyle = colours.get("alarm");
      context.lineWidth = r > 2 ? 2.2 : 1.2;
      context.beginPath();
      context.moveTo(x - r, y - r);
      context.lineTo(x + r, y + r);
      context.moveTo(x + r, y - r);
      context.lineTo(x - r, y + r);
      context.stroke();
    } else if (event.type === "finished") {
      context.fillStyle = colours.get("ink");
      context.beginPath();
      context.arc(x, y, r * 0.75, 0, 7);
      context.fill();
    }
  }

  #placeCursor(step) {
    const { columnWidth, first, columns } = this.#layout;
    const x = this.#x(step);
    this.cursor.hidden = step < 0;
    this.cursor.style.transform = `translateX(${x - 1}px)`;
    this.cursor.style.width = `${columnWidth + 1}px`;
    this.future.style.left = `${x + columnWidth}px`;
    this.future.style.width = `${Math.max(0, this.#x(first + columns) - x - columnWidth)}px`;
  }

  #stepAt(event) {
    const x = event.clientX - this.wrap.getBoundingClientRect().left;
    const step = Math.floor((x - LABEL_WIDTH) / this.#layout.columnWidth) + this.#layout.first;
    return x >= LABEL_WIDTH && step < this.view.run.steps.length ? step : null;
  }

  #jump(event) {
    const step = this.#stepAt(event);
    if (step !== null) this.onJump(step);
  }

  #say(step) {
    const { stats } = this.view.run.snapshot(step);
    if (stats.num_scheduled_reqs === undefined) return "";
    return `step ${step}: batch ${stats.num_scheduled_reqs}, ${plural(stats.num_scheduled_tokens, "token")}, KV ${Math.round(100 * stats.kv_cache_usage)} %`;
  }

  #point(event) {
    const step = this.#stepAt(event);
    if (step === null) return this.#rest();
    const { run } = this.view;
    const id = run.ids[Math.floor((event.clientY - this.wrap.getBoundingClientRect().top) / this.#layout.rowHeight)];
    const tokens = run.steps[step].requests[id]?.num_scheduled_tokens;
    setText(this.readout, `${this.#say(step)}${tokens ? `; ${id}: ${plural(tokens, "token")}` : ""}`);
  }

  #rest() {
    setText(this.readout, this.#say(this.view.run.at(this.view.step)));
  }

  #drawMoments(run, step) {
    const words = { preempted: "preempted", swapped_in: "back from the CPU", refused: "refused" };
    const all = run.moments;
    const start = Math.max(0, all.findIndex((moment) => moment.step > step - 1) - 3);
    const some = all.slice(start, start + 7).map((moment) => ({ ...moment, isHere: moment.step === run.at(step) }));
    const makeButton = ({ step: target, type, id, isHere }) =>
      h("button", { type: "button", class: "mv-moment", "aria-current": isHere ? "step" : null, on: { click: () => this.onJump(target) } }, `${target}: `, chip(this.identities, id), ` ${words[type]}`);
    this.moments.hidden = all.length === 0;
    refill(this.moments, [some, all.length], () => [
      h("span", { class: "mv-title" }, "Jump to"),
      ...some.map(makeButton),
      all.length > some.length ? h("span", { class: "mv-aside" }, `${all.length} in all`) : "",
    ]);
    setAttribute(this.base, "aria-label", `Timeline: ${plural(run.steps.length, "step")}, ${plural(run.ids.length, "request")}, ${plural(all.filter((m) => m.type === "preempted").length, "step")} with preemptions`);
  }
}
