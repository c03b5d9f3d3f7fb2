/* The panel of the step's token budget. */

import { chip, h, heading, panel, plural, reconcile, refill, setText } from "./dom.js";

const CAP_WORDS = {
  gap: ["gap", "nothing but its own gap, known − computed: it gets all that it lacks"],
  long_prefill_token_threshold: ["threshold", "long_prefill_token_threshold caps one request’s tokens"],
  max_num_batched_tokens: ["budget", "what was left of max_num_batched_tokens"],
  max_model_len: ["model length", "max_model_len"],
};
const MAX_GRANTS = 12;

/** The step's budget, filled in the order of scheduling. */
export class BudgetPanel {
  #segments = new Map();

  constructor() {
    this.sum = h("span", { class: "mv-aside" });
    this.bar = h("div", { class: "mv-budget-bar", "aria-hidden": "true" });
    this.grants = h("ol", { class: "mv-grants" });
    this.element = panel("budget", "Token budget of this step", heading("Token budget", this.sum), this.bar, this.grants);
  }

  draw({ snapshot, identities }) {
    const { max_num_batched_tokens: most, spent } = snapshot.budget;
    setText(this.sum, `${spent} of ${most} tokens`);
    this.bar.dataset.many = snapshot.scheduled.length > 40;
    reconcile(
      this.bar,
      this.#segments,
      snapshot.scheduled,
      (row) => row.request_id,
      (row) => this.#segment(row.request_id, identities),
      (node, row) => {
        node.style.flexBasis = `${(100 * row.num_scheduled_tokens) / most}%`;
        setText(node, row.num_scheduled_tokens / most > 0.05 ? row.request_id : "");
      },
    );
    const first = snapshot.scheduled.slice(0, MAX_GRANTS);
    const rest = snapshot.scheduled.slice(MAX_GRANTS);
    const restTokens = rest.reduce((sum, row) => sum + row.num_scheduled_tokens, 0);
    const withdrawn = snapshot.events.filter((event) => event.type === "unscheduled");
    const seen = first.map((row) => [row.request_id, row.num_scheduled_tokens, row.limits.gap, row.cap]);
    refill(this.grants, [seen, rest.length, restTokens, withdrawn], () => {
      const rows = first.map((row) => this.#grant(row, identities));
      if (rest.length) rows.push(h("li", { class: "mv-rest" }, `and ${rest.length} more: ${plural(restTokens, "token")}`));
      rows.push(...withdrawn.map((event) => this.#withdrawn(event, identities)));
      return rows.length ? rows : [h("li", { class: "mv-rest" }, "No token is spent.")];
    });
  }

  #segment(id, identities) {
    const node = h("span", { class: "mv-segment", data: { req: id } });
    identities.paint(node, id);
    return node;
  }

  #grant(row, identities) {
    const [word, meaning] = CAP_WORDS[row.cap] ?? [row.cap, ""];
    const gap = row.limits.gap;
    const drafts = row.num_draft_tokens ? ` (${row.num_draft_tokens} proposed)` : "";
    const tokens = row.num_scheduled_tokens === gap ? `${gap}${drafts}` : `${row.num_scheduled_tokens} of ${gap}${drafts}`;
    return h(
      "li",
      { data: { grant: row.request_id, cap: row.cap } },
      chip(identities, row.request_id),
      h("span", { class: "mv-number" }, tokens),
      h("span", { class: "mv-cap", title: `Bound by ${meaning}` }, word),
    );
  }

  #withdrawn(event, identities) {
    return h(
      "li",
      { class: "mv-withdrawn" },
      chip(identities, event.request_id),
      h("s", { class: "mv-number" }, String(event.num_scheduled_tokens)),
      h("span", { class: "mv-cap" }, "given back"),
    );
  }
}
