/* The panel of WAITING and RUNNING. */

import { chip, clamp, h, heading, legend, panel, reconcile, refill, setAttribute, setText } from "./dom.js";

const ROW_HEIGHT = 46; // px, as in view.css
const LONG_HEIGHT = 414; // px, of a long list, as in view.css
const MANY_ROWS = 20; // beyond, a list scrolls, and only the rows in sight exist

/** A list of requests; a long one keeps only the rows in sight in the page. */
class RowList {
  constructor(title, makeRow) {
    this.makeRow = makeRow;
    this.nodes = new Map();
    this.items = [];
    this.list = h("ul", { class: "mv-rows", "aria-label": title });
    this.before = h("div", { class: "mv-space" });
    this.after = h("div", { class: "mv-space" });
    this.top = 0;
    this.element = h("div", { class: "mv-scroll", on: { scroll: () => this.#onScroll() } },
      this.before, this.list, this.after);
  }

  #onScroll() {
    this.top = this.element.scrollTop;
    if (this.isLong) this.#place();
  }

  get isLong() {
    return this.items.length > MANY_ROWS;
  }

  draw(items, updateRow) {
    this.items = items;
    this.updateRow = updateRow;
    this.element.dataset.long = this.isLong;
    setAttribute(this.element, "tabindex", this.isLong ? "0" : null);
    this.#place();
  }

  #place() {
    let [first, last] = [0, this.items.length];
    if (this.isLong) {
      first = clamp(Math.floor(this.top / ROW_HEIGHT) - 2, 0, this.items.length - 1);
      last = Math.min(last, first + Math.ceil(LONG_HEIGHT / ROW_HEIGHT) + 4);
    }
    this.before.style.height = `${first * ROW_HEIGHT}px`;
    this.after.style.height = `${(this.items.length - last) * ROW_HEIGHT}px`;
    const visible = this.items.slice(first, last);
    reconcile(this.list, this.nodes, visible, (item) => item.id, this.makeRow, this.updateRow);
  }
}

const BAR_LEGEND = [
  ["now", "computed in this step"],
  ["known", "known, not computed"],
  ["next", "sampled when the step ends: the next gap of one"],
];

const DRAFT_LEGEND = [["draft", "proposed, verified in this step"]];

/** Whether a request's gap closes in this step: then, and only then, a token is sampled for it. */
const samplesToken = (row) => row.num_scheduled_tokens > 0 && row.num_computed_tokens >= row.num_tokens;

/** Tokens of this step beyond those that are known: proposed ones. */
const numDrafts = (row) => Math.max(0, row.num_computed_tokens - row.num_tokens);

/** WAITING and RUNNING in order, each request as its two numbers racing. */
export class QueuesPanel {
  constructor({ identities, onAbort }) {
    this.identities = identities;
    this.onAbort = onAbort;
    const makeRow = (item) => this.#makeRow(item.id);
    this.running = new RowList("RUNNING, in order of admission", makeRow);
    this.waiting = new RowList("WAITING, the head of the queue first", makeRow);
    this.numRunning = h("span", { class: "mv-aside" });
    this.numWaiting = h("span", { class: "mv-aside" });
    this.ended = h("div", { class: "mv-ended" });
    this.draftLegend = legend(DRAFT_LEGEND);
    this.element = panel(
      "queues",
      "Queues",
      heading("RUNNING", this.numRunning),
      this.running.element,
      heading("WAITING", this.numWaiting),
      this.waiting.element,
      legend(BAR_LEGEND),
      this.draftLegend,
      this.ended,
    );
  }

  draw(view) {
    const { snapshot, run, step } = view;
    const before = this.#positions(view);
    const item = (id, place) => ({ id, place, row: snapshot.requests[id] });
    const update = (node, entry) => this.#updateRow(node, entry, view);
    this.running.draw(snapshot.running.map((id) => item(id, "running")), update);
    this.waiting.draw(snapshot.waiting.map((id) => item(id, "waiting")), update);
    this.element.dataset.canAbort = view.isLive;
    this.draftLegend.hidden = !run.config.num_speculative_tokens;
    const most = run.config.max_num_seqs;
    setText(this.numRunning, most ? `${snapshot.running.length} of at most ${most}` : String(snapshot.running.length));
    setText(this.numWaiting, String(snapshot.waiting.length));
    this.#drawEnded(run.ended(run.at(step)), run);
    this.#slide(before);
  }

  #drawEnded(ids, run) {
    const marks = { finished: "✓", aborted: "stopped", stopped: "stopped", refused: "refused" };
    const shownIds = ids.slice(-10).map((id) => [id, marks[run.endedAt.get(id).how]]);
    const more = ids.length > shownIds.length ? [`${ids.length - shownIds.length} earlier, `] : [];
    refill(this.ended, [more, shownIds], () => {
      const chips = shownIds.map(([id, mark]) => {
        const node = chip(this.identities, id);
        node.append(h("small", {}, ` ${mark}`));
        return node;
      });
      return [h("span", { class: "mv-title" }, "ENDED"), ...(ids.length ? [...more, ...chips] : ["nobody yet"])];
    });
  }

  #makeRow(id) {
    const button = h(
      "button",
      { type: "button", class: "mv-row-main", data: { req: id }, "aria-pressed": "false" },
      chip(this.identities, id),
      h("span", { class: "mv-note" }),
      h("span", { class: "mv-number" }),
      h("span", { class: "mv-spoken" }),
      h(
        "span",
        { class: "mv-bar", "aria-hidden": "true" },
        h("span", { class: "mv-bar-prompt" }),
        h("span", { class: "mv-bar-known" }),
        h("span", { class: "mv-bar-done" }),
        h("span", { class: "mv-bar-output" }),
        h("span", { class: "mv-bar-now" }),
        h("span", { class: "mv-bar-draft" }),
        h("span", { class: "mv-bar-next", title: "The next token: sampled when this step ends, known from then on, and not computed yet" }),
      ),
    );
    const abort = h(
      "button",
      { type: "button", class: "mv-abort", "aria-label": `Abort ${id}`, title: `Abort ${id}`, on: { click: () => this.onAbort(id) } },
      "×",
    );
    const node = h("li", { class: "mv-row", data: { row: id } }, button, abort);
    this.identities.paint(node, id);
    return node;
  }

  #updateRow(node, { id, place, row }, view) {
    const { snapshot, run, victims, usesPriority } = view;
    const button = node.firstElementChild;
    const [, note, numbers, spoken, bar] = button.children;
    const isVictim = victims.has(id);
    const notes = this.#notes(id, place, row, { snapshot, run, isVictim, usesPriority });
    node.dataset.place = place;
    node.dataset.victim = isVictim;
    node.dataset.computed = row.num_computed_tokens;
    node.dataset.known = row.num_tokens;
    const signature = notes.join("|");
    if (note.dataset.text !== signature) {
      note.dataset.text = signature;
      note.replaceChildren(...notes.map((text, i) => h("span", { class: i === 0 && isVictim ? "mv-alarm" : "" }, text)));
    }
    const drafts = numDrafts(row);
    setText(numbers, `${row.num_computed_tokens - drafts} / ${row.num_tokens}${drafts ? ` + ${drafts}` : ""}`);
    setText(spoken, samplesToken(row) ? " tokens computed, the next one sampled" : " tokens computed");
    this.#drawBar(bar, row, run);
  }

  #notes(id, place, row, { snapshot, run, isVictim, usesPriority }) {
    const notes = [];
    if (isVictim) notes.push("preempted now");
    else if (row.num_scheduled_tokens) notes.push(`+${row.num_scheduled_tokens - numDrafts(row)}`);
    else notes.push(place === "running" ? "no tokens" : row.num_computed_tokens ? "swapped out" : "waits");
    const verified = snapshot.events.find((event) => event.type === "verified" && event.request_id === id);
    if (verified) notes.push(`${verified.num_draft_tokens} proposed, ${verified.num_accepted_tokens} accepted`);
    if (snapshot.finished.includes(id)) notes.push("ends");
    if (usesPriority) notes.push(`priority ${row.priority}`);
    if (run.arrivedAt.has(id)) notes.push(`came at ${run.arrivedAt.get(id)}`);
    if (row.num_cached_tokens) notes.push(`${row.num_cached_tokens} cached`);
    if (row.num_preemptions) notes.push(`preempted ×${row.num_preemptions}`);
    return notes;
  }

  /** Rows share no scale, or a short request would be a dot beside a long one; widths hint at it. */
  #drawBar(bar, row, run) {
    const { num_prompt_tokens, num_tokens, num_computed_tokens, num_scheduled_tokens, num_output_tokens } = row;
    const mostOutput = row.max_tokens ?? num_output_tokens + 1;
    const most = Math.min(num_prompt_tokens + mostOutput, run.config.max_model_len ?? Infinity);
    const end = Math.max(num_tokens, num_computed_tokens, most);
    const percent = (tokens) => `${(100 * tokens) / end}%`;
    const [prompt, known, done, output, now, draft, next] = bar.children;
    const drafts = numDrafts(row);
    bar.style.width = `${100 * Math.max(0.24, Math.sqrt(end / Math.max(run.longest, end)))}%`;
    prompt.style.width = percent(num_prompt_tokens);
    known.style.width = percent(num_tokens);
    done.style.width = percent(Math.min(num_computed_tokens, num_prompt_tokens));
    output.style.left = percent(num_prompt_tokens);
    output.style.width = percent(Math.max(0, num_computed_tokens - drafts - num_prompt_tokens));
    now.style.left = percent(num_computed_tokens - num_scheduled_tokens);
    now.style.width = percent(num_scheduled_tokens);
    draft.style.left = percent(num_tokens);
    draft.style.width = percent(drafts);
    draft.hidden = !drafts;
    next.hidden = !samplesToken(row); // of proposed tokens the first place is the one that is sure
    next.style.left = `min(${percent(num_tokens)}, 100% - 6px)`;
    next.style.width = percent(1);
  }

  #positions({ animate }) {
    if (!animate || this.running.isLong || this.waiting.isLong) return null;
    const rows = this.element.querySelectorAll(".mv-row");
    if (rows.length > 24) return null;
    return new Map(Array.from(rows, (row) => [row.dataset.row, row.getBoundingClientRect()]));
  }

  /** Let each row glide from where it was; a row that changed its queue keeps its place by id. */
  #slide(before) {
    if (!before) return;
    for (const row of this.element.querySelectorAll(".mv-row")) {
      const from = before.get(row.dataset.row);
      if (!from) {
        row.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 220 });
        continue;
      }
      const to = row.getBoundingClientRect();
      const dy = from.top - to.top;
      if (Math.abs(dy) < 1) continue;
      row.animate([{ transform: `translateY(${dy}px)` }, { transform: "none" }], { duration: 260, easing: "ease-out" });
    }
  }
}
