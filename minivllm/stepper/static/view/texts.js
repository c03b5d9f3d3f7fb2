/* The panel of prompts and outputs, where a real model runs. */

import { chip, h, heading, panel } from "./dom.js";

/** What the requests say: shown where a real model runs, tokens as text. */
export class TextsPanel {
  constructor() {
    this.list = h("ul", { class: "mv-texts-list" });
    this.scroller = h("div", { class: "mv-texts-body", tabindex: 0, role: "group", "aria-label": "Prompts and outputs" }, this.list);
    this.element = panel("texts", "What the requests say", heading("Text", h("span", { class: "mv-aside" }, "prompt, output, new token")), this.scroller);
  }

  draw({ run, step, snapshot, identities }) {
    this.element.hidden = Object.keys(run.prompts).length === 0;
    if (this.element.hidden) return;
    const here = [...snapshot.running, ...snapshot.waiting, ...snapshot.finished];
    const ids = [...new Set([...here, ...run.ended(run.at(step)).slice(-6)])];
    const items = ids.map((id) => {
      const oneLine = (text) => text.replaceAll("\n", "↵");
      const { before, fresh } = run.text(id, step);
      const prompt = run.prompts[id] ?? "";
      const end = prompt.length > 160 ? `…${prompt.slice(-160)}` : prompt;
      return h("li", { data: { text: id } }, chip(identities, id), " ", h("span", { class: "mv-prompt" }, oneLine(end)), h("span", { class: "mv-output" }, oneLine(before)), fresh ? h("mark", {}, oneLine(fresh)) : null);
    });
    this.list.replaceChildren(...items);
  }
}
