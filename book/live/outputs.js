/* A cell's outputs, drawn as the book's build draws them. */

const ORDER = ["text/html", "image/svg+xml", "image/png", "text/markdown", "text/plain"];

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

const pre = (kind, text) =>
  make("div", { class: `output ${kind} highlight-myst-ansi notranslate` },
    make("div", { class: "highlight" }, make("pre", { tabindex: "0" }, text)));

/** `code` and **bold** of one paragraph. */
const inline = (text) =>
  text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => {
    if (/^`.+`$/.test(part)) return make("code", { class: "docutils literal notranslate" }, part.slice(1, -1));
    if (/^\*\*.+\*\*$/.test(part)) return make("strong", {}, part.slice(2, -2));
    return part;
  });

/** The Markdown that cells show: paragraphs, lists and fenced code. */
const markdown = (text) => {
  const nodes = [];
  const fences = text.split(/^```(\w*)\n([\s\S]*?)^```$/m);
  for (let i = 0; i < fences.length; i += 3) {
    for (const block of fences[i].split(/\n\s*\n/).map((row) => row.trim()).filter(Boolean)) {
      const items = block.split("\n");
      if (items.every((item) => /^[-*] /.test(item))) nodes.push(make("ul", {}, ...items.map((item) => make("li", {}, ...inline(item.slice(2))))));
      else nodes.push(make("p", { class: /^`minivllm\//.test(block) ? "mv-source" : "" }, ...inline(block)));
    }
    if (i + 2 < fences.length) {
      const code = make("pre", { tabindex: "0" }, fences[i + 2]);
      nodes.push(make("div", { class: `highlight-${fences[i + 1] || "text"} notranslate` }, make("div", { class: "highlight" }, code)));
    }
  }
  return nodes;
};

const html = (markup) => {
  const box = make("div", { class: "output text_html" });
  box.innerHTML = markup; // scripts in it do not run: see closePage in python.js
  for (const node of box.querySelectorAll("base, link, meta")) node.remove(); // these would lead the page away
  return box;
};

const bundle = (data) => {
  const kind = ORDER.find((name) => data[name] !== undefined);
  const content = data[kind];
  if (kind === "text/html" || kind === "image/svg+xml") return [html(content)];
  if (kind === "image/png") return [make("img", { class: "output", alt: "A picture that the cell shows", src: `data:image/png;base64,${content}` })];
  if (kind === "text/markdown") return markdown(content);
  return [pre("text_plain", content ?? Object.keys(data).join(", "))];
};

const plain = (text) => text.replace(/\x1b\[[\d;]*m/g, "");

/** Where one cell's outputs go. */
export class Outputs {
  #box;
  #built; // what the build put there, for "reset"
  #last = null; // the stream that grows

  /** @param {HTMLElement} box  the cell's `.cell_output` */
  constructor(box) {
    this.#box = box;
    this.#built = [...box.childNodes];
  }

  clear() {
    this.#box.replaceChildren();
    this.#last = null;
  }

  /** Back to what the book was printed with. */
  restore() {
    this.#box.replaceChildren(...this.#built);
    this.#last = null;
    window.minivllmFigures.draw(this.#box.querySelectorAll(".mv-figure")); // the theme may have changed
  }

  add(output) {
    if (output.output_type === "clear_output") this.clear();
    else if (output.output_type === "stream") this.#stream(output);
    else {
      this.#last = null;
      if (output.output_type === "error") {
        const node = pre("traceback", output.traceback.map(plain).join("\n"));
        node.classList.add("mv-code-error");
        this.#box.append(node);
      } else this.#box.append(...bundle(output.data));
      this.#draw();
    }
  }

  #stream({ name, text }) {
    if (this.#last?.name !== name) {
      const node = pre("stream", "");
      if (name === "stderr") node.classList.add("stderr");
      this.#box.append(node);
      this.#last = { name, pre: node.querySelector("pre") };
    }
    const { pre: node } = this.#last;
    if (text.includes("\r")) node.textContent = (node.textContent + plain(text)).replace(/^.*\r(?!\n|$)/gm, ""); // a progress bar
    else node.append(plain(text));
  }

  /** Figures and steppers are drawn by the scripts that draw the page's own. */
  #draw() {
    const figures = [...this.#box.querySelectorAll(".mv-figure:not([data-seen])")];
    for (const figure of figures) figure.dataset.seen = "";
    if (figures.length) window.minivllmFigures.draw(figures);
    for (const stepper of this.#box.querySelectorAll(".mv-stepper-embed:not([data-seen])")) {
      stepper.dataset.seen = "";
      loadSteppers().then((steppers) => steppers.start(stepper));
    }
  }
}

let steppers = null;

/** The steppers' script, on a page that has none of its own. */
const loadSteppers = () => {
  steppers ??= new Promise((resolve, reject) => {
    if (window.minivllmSteppers) {
      resolve(window.minivllmSteppers);
      return;
    }
    const at = (name) => new URL(name, SCRIPT).href;
    document.head.append(make("link", { rel: "stylesheet", href: at("view.css") }));
    const script = make("script", { src: at("stepper.js") });
    script.onload = () => resolve(window.minivllmSteppers);
    script.onerror = () => reject(new Error("the stepper could not be loaded"));
    document.head.append(script);
  });
  return steppers;
};

/* global SCRIPT */
