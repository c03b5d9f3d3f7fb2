/* All panels of one run. */

import { BudgetPanel } from "./budget.js";
import { h, setText } from "./dom.js";
import { PoolPanel } from "./pool.js";
import { QueuesPanel } from "./queues.js";
import { victimsOf } from "./run.js";
import { TextsPanel } from "./texts.js";
import { TimelinePanel } from "./timeline.js";
import { WhyPanel } from "./why.js";

export class BranchView {
  constructor(context) {
    this.context = context;
    this.title = h("div", { class: "mv-branch-title" });
    this.panels = [
      new WhyPanel(),
      new BudgetPanel(),
      new QueuesPanel(context),
      new PoolPanel(context),
      new TimelinePanel(context),
      new TextsPanel(),
    ];
    const [why, budget, queues, pool, timeline, texts] = this.panels;
    this.pool = pool;
    this.element = h(
      "div",
      { class: "mv-branch" },
      h("div", { class: "mv-branch-inner" }, this.title, why.element, budget.element, queues.element, pool.element, texts.element, timeline.element),
    );
  }

  draw(view) {
    const { run } = view;
    const snapshot = run.snapshot(view.step);
    const rows = Object.values(snapshot.requests);
    this.element.dataset.step = snapshot.step;
    this.element.dataset.branch = run.name;
    const full = {
      ...view,
      identities: this.context.identities,
      snapshot,
      previous: run.previous(view.step),
      victims: victimsOf(snapshot),
      usesPriority: run.config.policy === "priority" || rows.some((row) => row.priority !== 0),
    };
    setText(this.title, view.title);
    this.title.hidden = !view.title;
    for (const each of this.panels) each.draw(full);
  }

  highlight(focus) {
    this.pool.highlight(focus);
  }

  /** Sizes or colours have changed: canvases measure and paint anew. */
  reset() {
    for (const each of this.panels) each.reset?.();
  }
}
