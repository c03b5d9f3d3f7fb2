/* The panel that tells the step in sentences. */

import { chip, h, heading, panel, refill, setText } from "./dom.js";
import { victimsOf } from "./run.js";

/** Ids and numbers look alike if an engine numbers its requests; only ids with a letter are marked. */
const isTelling = (identities, word) => /[A-Za-z]/.test(word) && identities.has(word);

/** A sentence with the requests in it marked. */
const linked = (identities, sentence) =>
  sentence.split(/([A-Za-z0-9][A-Za-z0-9_.-]*)/).flatMap((part) => {
    const word = part.replace(/[.-]+$/, "");
    if (!word || !isTelling(identities, word)) return [part];
    return [chip(identities, word), part.slice(word.length)];
  });

/** The step told in sentences. */
export class WhyPanel {
  constructor() {
    this.count = h("span", { class: "mv-aside" });
    this.list = h("ol", { class: "mv-sentences" });
    const onScroll = () => { this.isScrolled = true; };
    this.scroller = h("div", { class: "mv-why-body", tabindex: 0, role: "group", "aria-label": "Sentences", on: { scroll: onScroll } }, this.list);
    this.element = panel("why", "What happened in this step, and why", heading("Why", this.count), this.scroller);
  }

  draw({ run, step, snapshot, identities }) {
    const sentences = run.sentences[run.at(step)] ?? [];
    const alarms = [...victimsOf(snapshot).values()].map((e) => `${e.for_request_id} needs `);
    const items = sentences.map((sentence) => {
      const isAlarm = alarms.some((start) => sentence.startsWith(start));
      return [isAlarm ? "alarm" : / waits: | is refused: /.test(sentence) ? "wait" : "plain", sentence];
    });
    if (run.steps.length === 0) items.push(["plain", "Nothing has run yet. Press Step."]);
    const isLast = run.at(step) === run.steps.length - 1;
    if (run.notice && isLast) items.push(["alarm", run.notice]);
    else if (run.done && isLast) items.push(["end", "The run is over: nobody is left."]);
    refill(this.list, items, () => items.map(([kind, text]) => h("li", { data: { kind } }, ...linked(identities, text))));
    // To ask where it stands, or to set it for nothing, would make the browser lay out the page.
    if (this.isScrolled) this.scroller.scrollTop = 0;
    this.isScrolled = false;
    setText(this.count, snapshot.step < 0 ? "" : `step ${snapshot.step}`);
  }
}
