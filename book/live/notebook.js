/* A chapter's notebook in the page: its cells, and what the reader has changed in them. */

const PREFIX = "minivllm-cells:";

const stored = (key) => {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key)) ?? {};
  } catch {
    return {}; // storage is off, or holds what is not ours
  }
};

export class Notebook {
  #key;
  #edits; // index → {original, source}
  cells = null; // of the notebook, Markdown too; {type, source, tags, needs, setup}

  /** @param {string} key  of the page: where its edits are kept */
  constructor(key) {
    this.#key = key;
    this.#edits = new Map(Object.entries(stored(key)).map(([index, edit]) => [Number(index), edit]));
  }

  /** Fetch the cells; the page needs them when Python starts, not before. */
  async load(url) {
    if (this.cells) return;
    const response = await fetch(url);
    if (!response.ok) throw new Error(`the notebook could not be loaded: the server says ${response.status}`);
    ({ cells: this.cells, metadata: this.metadata } = await response.json());
    this.#follow();
  }

  /** The book may have changed since: an edit belongs to the cell with the text that it began with. */
  #follow() {
    const moved = new Map();
    for (const [index, edit] of this.#edits) {
      if (this.cells[index]?.source === edit.original) moved.set(index, edit);
      else {
        const at = this.cells.findIndex((cell) => cell.source === edit.original);
        if (at >= 0) moved.set(at, edit);
        else if (this.cells[index]?.type === "code") moved.set(index, edit);
      }
    }
    this.#edits = moved;
  }

  get edited() {
    return [...this.#edits.keys()];
  }

  isEdited(index) {
    return this.#edits.has(index);
  }

  /** The reader's text of a cell, or null. */
  edit(index) {
    return this.#edits.get(index)?.source ?? null;
  }

  source(index) {
    return this.edit(index) ?? this.cells[index].source;
  }

  /** What runs of a cell that is not shown as live. */
  hidden(index) {
    const { needs, setup, source } = this.cells[index];
    return needs ? setup : source;
  }

  set(index, original, source) {
    if (source === original) this.#edits.delete(index);
    else this.#edits.set(index, { original, source });
    this.#keep();
  }

  reset(indices) {
    for (const index of indices) this.#edits.delete(index);
    this.#keep();
  }

  #keep() {
    try {
      if (this.#edits.size) localStorage.setItem(PREFIX + this.#key, JSON.stringify(Object.fromEntries(this.#edits)));
      else localStorage.removeItem(PREFIX + this.#key);
    } catch {
      /* private window, or full: the edits last as long as the page */
    }
  }

  /** The notebook with the reader's edits, as JupyterLab opens it. */
  toIpynb() {
    const lines = (text) => text.match(/[^\n]*\n|[^\n]+/g) ?? [];
    const cells = this.cells.map((cell, index) => ({
      cell_type: cell.type,
      id: cell.id ?? `cell-${index}`,
      metadata: cell.metadata ?? (cell.tags.length ? { tags: cell.tags } : {}),
      source: lines(cell.type === "code" || this.isEdited(index) ? this.source(index) : cell.source),
      ...(cell.type === "code" ? { execution_count: null, outputs: [] } : {}),
    }));
    return {
      cells,
      metadata: this.metadata,
      nbformat: 4,
      nbformat_minor: 5,
    };
  }

  download(name) {
    const blob = new Blob([JSON.stringify(this.toIpynb(), null, 1) + "\n"], { type: "application/x-ipynb+json" });
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }
}
