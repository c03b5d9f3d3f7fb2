/* Draws the Plotly figures of a page (see minivllm/viz/offline.py for where they come from).
 *
 * No network, no CDN: plotly.js and the templates (minivllm-theme.js) lie beside this file, are
 * fetched when the first figure comes near the screen, and shared by all pages. Pages without
 * figures load neither. Works from disk (file://) too.
 */
(() => {
  "use strict";

  /* `make live` hands over its server once, in the address: this tab keeps it, the address does not. */
  const takeLive = () => {
    const live = location.hostname === "127.0.0.1" && /^#live=(\d+)\.([0-9a-f]+)$/.exec(location.hash);
    if (!live) return false;
    sessionStorage.setItem("minivllm-live", JSON.stringify({ port: Number(live[1]), token: live[2] }));
    history.replaceState(null, "", location.pathname + location.search);
    return true;
  };
  takeLive();
  window.addEventListener("hashchange", () => takeLive() && location.reload());

  const here = document.currentScript.src;
  const NARROW = 600; // px of figure width below which the layout changes
  let library = null; // a promise: Plotly and the templates, once asked for

  const load = (name) =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.src = new URL(name, here).href;
      script.onload = resolve;
      script.onerror = () => reject(new Error("could not load " + script.src));
      document.head.append(script);
    });

  /* From a server comes the compressed form, a third of the bytes; a page on disk cannot fetch. */
  const loadPlotly = async () => {
    if (location.protocol === "file:" || !window.DecompressionStream) return load("plotly.min.js");
    const response = await fetch(new URL("plotly.bin", here));
    if (!response.ok) return load("plotly.min.js");
    const unpacked = response.body.pipeThrough(new DecompressionStream("gzip"));
    const code = await new Response(unpacked).blob();
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    await load(url).finally(() => URL.revokeObjectURL(url));
  };

  const ready = () => (library ??= Promise.all([loadPlotly(), load("minivllm-theme.js")]));

  const isDark = () => document.documentElement.dataset.theme === "dark";

  /* The figure's JSON names light colours; on a dark page each becomes its dark twin. */
  const figureFor = (element, dark) => {
    const source = element.querySelector('script[type="application/json"]').textContent;
    const { lightToDark } = window.minivllmTheme;
    const text = dark
      ? source.replace(/#[0-9a-f]{6}\b/gi, (hex) => lightToDark[hex.toLowerCase()] ?? hex)
      : source;
    return JSON.parse(text);
  };

  /* What a phone needs: smaller type, thin margins. */
  const narrowed = (layout) => ({
    ...layout,
    font: { ...layout.font, size: 12 },
    margin: { ...layout.margin, l: 40, r: 8 },
  });

  /* Plotly fits a table's labels to its cells, down to what nobody can read; 10 px is the least.
     In many columns there is no room for the "+" of a shared block: its label is underlined. */
  const readable = (trace) => {
    if (trace.type !== "heatmap" || !trace.texttemplate) return trace;
    const isTight = trace.text?.[0]?.length > 12;
    const word = (label) => (isTight ? label.replace(/^(.*)\+$/, "<u>$1</u>") : label);
    const text = trace.text?.map((row) => row.map(word));
    return { ...trace, text, textfont: { ...trace.textfont, size: 10 } };
  };

  const draw = async (element) => {
    await ready();
    const dark = isDark();
    const figure = figureFor(element, dark);
    const plot = element.querySelector(".mv-plot");
    const isNarrow = element.clientWidth < NARROW;
    const layout = isNarrow ? narrowed(figure.layout) : figure.layout;
    layout.template = window.minivllmTheme[dark ? "dark" : "light"];
    layout.height = Number(element.dataset.height);
    window.Plotly.purge(plot);
    await window.Plotly.newPlot(plot, {
      data: isNarrow ? figure.data.map(readable) : figure.data,
      layout,
      config: { ...figure.config, displayModeBar: isNarrow ? false : "hover" },
      frames: figure.frames,
    });
    element.dataset.drawn = dark ? "dark" : "light";
    element.dataset.narrow = isNarrow;
  };

  const fail = (element, error) => {
    element.classList.add("mv-failed");
    element.append("This figure could not be drawn: " + error.message);
    console.error(error);
  };

  const start = () => {
    const drawn = new Set();
    const redraw = (element) => draw(element).catch((error) => fail(element, error));

    const near = new IntersectionObserver(
      (entries) => {
        for (const { isIntersecting, target } of entries) {
          if (!isIntersecting || drawn.has(target)) continue;
          near.unobserve(target);
          drawn.add(target);
          redraw(target);
        }
      },
      { rootMargin: "600px" },
    );
    new MutationObserver(() => {
      const now = isDark() ? "dark" : "light";
      for (const element of drawn) {
        if (!element.isConnected) drawn.delete(element); // a live cell has replaced it
        else if (element.dataset.drawn !== now) redraw(element);
      }
    }).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

    /* Plotly follows the width by itself; only crossing the narrow limit needs a new layout. */
    const sizes = new ResizeObserver((entries) => {
      for (const { target } of entries) {
        const isNarrow = String(target.clientWidth < NARROW);
        if (target.dataset.narrow && target.clientWidth && target.dataset.narrow !== isNarrow) {
          target.dataset.narrow = isNarrow;
          redraw(target);
        }
      }
    });
    const watch = (figures) => {
      for (const element of figures) {
        near.observe(element);
        sizes.observe(element);
      }
    };
    watch(document.querySelectorAll(".mv-figure"));
    window.minivllmFigures = { draw: watch }; // for figures that a live cell shows
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
