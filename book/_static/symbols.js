/* The search page: names in the code, such as allocate_slots, above the words that Sphinx finds.
 * window.minivllmSymbols (book/_ext/minivllm_site.py): name → [page, anchor, section, chapter]. */
(() => {
  "use strict";

  const MOST = 12; // sections that are shown
  const bare = (text) => text.trim().toLowerCase().replace(/\(\)$/, "");
  const last = (name) => name.slice(name.lastIndexOf(".") + 1);

  /** How well a name answers a query: 0 the same, 1 its last part, 2 within; -1 not at all. */
  const rank = (name, query) => {
    const known = bare(name);
    if (known === query) return 0;
    if (last(known) === last(query)) return 1;
    return query.length > 3 && known.includes(query) ? 2 : -1;
  };

  const query = bare(new URLSearchParams(location.search).get("q") ?? "");
  const results = document.getElementById("search-results");
  if (!query || !results) return;

  const found = Object.entries(window.minivllmSymbols ?? {})
    .flatMap(([name, places]) => places.map((place) => ({ name, place, rank: rank(name, query) })))
    .filter((hit) => hit.rank >= 0)
    .sort((a, b) => a.rank - b.rank);
  if (!found.length) return;

  const list = document.createElement("ul");
  for (const { name, place } of found.slice(0, MOST)) {
    const [page, anchor, section, chapter] = place;
    const item = document.createElement("li");
    const link = document.createElement("a");
    const code = document.createElement("code");
    code.textContent = name;
    link.href = `${document.documentElement.dataset.content_root ?? "./"}${page}.html#${anchor}`;
    link.append(code, ` in ${section}`);
    item.append(link, section === chapter ? "" : ` (${chapter})`);
    list.append(item);
  }
  const box = document.createElement("nav");
  box.className = "mv-symbols";
  box.setAttribute("aria-label", "Names in the code");
  const heading = document.createElement("h2");
  heading.textContent = "Names in the code";
  box.append(heading, list);
  results.before(box);
})();
