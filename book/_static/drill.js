// The interview cards of chapter 13: a timer, notes, and a rubric that opens after one has thought.
// All that is kept stays in this browser (localStorage), and in this page's memory where there is none.
(() => {
  "use strict";
  const KEY = "minivllm-drill-1";
  const cards = [...document.querySelectorAll(".mv-drill")];
  const sum = document.querySelector(".mv-drill-progress");

  // What the browser gives back may be anything: keep what has the right shape.
  function load() {
    const kept = {};
    try {
      const read = JSON.parse(localStorage.getItem(KEY) || "{}");
      for (const card of cards) {
        const state = Object.hasOwn(read, card.dataset.card) ? read[card.dataset.card] : null;
        if (state === null || typeof state !== "object") continue;
        kept[card.dataset.card] = {
          notes: typeof state.notes === "string" ? state.notes.slice(0, 20000) : "",
          points: Array.isArray(state.points) ? state.points.filter(Number.isInteger) : [],
          open: state.open === true,
        };
      }
    } catch {
      // Nothing kept, or nothing that can be read: begin anew.
    }
    return kept;
  }

  const states = load();
  const stateOf = (name) => (states[name] ??= { notes: "", points: [], open: false });

  function save() {
    try {
      localStorage.setItem(KEY, JSON.stringify(states));
    } catch {
      // No storage (private window, disk full): the page goes on without it.
    }
    showSum();
  }

  const pointsOf = (card) => card.querySelectorAll(".mv-drill__rubric > ul > li").length;
  const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;

  function element(tag, properties, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function showSum() {
    if (!sum) return;
    const graded = cards.filter((card) => stateOf(card.dataset.card).open);
    const made = graded.reduce((total, card) => total + stateOf(card.dataset.card).points.length, 0);
    const all = graded.reduce((total, card) => total + pointsOf(card), 0);
    sum.querySelector("output").textContent =
      `${graded.length} of ${cards.length} cards answered` +
      (graded.length ? `, ${made} of their ${all} points made` : "");
    sum.querySelector("progress").value = graded.length;
  }

  function setUp(card) {
    const name = card.dataset.card;
    const limit = 60 * Number(card.dataset.minutes);
    const rubric = card.querySelector(".mv-drill__rubric");
    const title = card.querySelector(".mv-drill__title").textContent;
    let left = limit;
    let ends = 0;
    let ticking = 0;

    const start = element("button", { type: "button", textContent: "Start" });
    const grade = element("button", { type: "button", textContent: "Show the rubric" });
    const time = element("span", { className: "mv-drill__time", textContent: clock(left) });
    time.setAttribute("role", "timer");
    const says = element("span", { className: "mv-drill__says" });
    says.setAttribute("role", "status");
    const notes = element("textarea", {
      className: "mv-drill__notes",
      rows: 5,
      maxLength: 20000,
      placeholder: "Think first. Notes stay in this browser.",
      value: stateOf(name).notes,
    });
    notes.setAttribute("aria-label", `Your notes: ${title}`);
    const score = element("p", { className: "mv-drill__score" });
    rubric.before(
      element("div", { className: "mv-drill__bar" }, start, time, grade, says),
      notes,
    );
    rubric.append(score);

    const boxes = [...rubric.querySelectorAll(":scope > ul > li")].map((item, index) => {
      const box = element("input", { type: "checkbox" });
      box.checked = stateOf(name).points.includes(index);
      const words = item.textContent.trim().slice(0, 120);
      box.setAttribute("aria-label", `I said: ${words}`);
      item.prepend(box);
      box.addEventListener("change", () => {
        stateOf(name).points = boxes.flatMap((other, at) => (other.checked ? [at] : []));
        showScore();
        save();
      });
      return box;
    });

    function showScore() {
      const made = boxes.filter((box) => box.checked).length;
      score.textContent = `${made} of ${boxes.length} points. Tick what you said, not what you meant.`;
    }

    function stop() {
      clearInterval(ticking);
      ticking = 0;
      start.textContent = left > 0 && left < limit ? "Go on" : "Start";
    }

    function tick() {
      left = Math.max(0, Math.round((ends - Date.now()) / 1000));
      time.textContent = clock(left);
      if (left === 60) says.textContent = "One minute left.";
      if (left === 0) {
        says.textContent = "Time. Finish the sentence, then grade yourself.";
        stop();
        reveal();
      }
    }

    function reveal() {
      stop();
      rubric.hidden = false;
      rubric.open = true;
      grade.hidden = true;
      stateOf(name).open = true;
      showScore();
      save();
    }

    start.addEventListener("click", () => {
      if (ticking) return stop();
      if (left === 0) left = limit;
      ends = Date.now() + 1000 * left;
      ticking = setInterval(tick, 250);
      start.textContent = "Pause";
      says.textContent = "";
      notes.focus();
    });
    grade.addEventListener("click", reveal);
    notes.addEventListener("input", () => {
      stateOf(name).notes = notes.value;
      save();
    });

    card.clear = () => {
      stop();
      left = limit;
      time.textContent = clock(left);
      says.textContent = "";
      notes.value = "";
      boxes.forEach((box) => (box.checked = false));
      rubric.open = false;
      rubric.hidden = true;
      grade.hidden = false;
    };
    rubric.hidden = !stateOf(name).open;
    grade.hidden = stateOf(name).open;
    showScore();
  }

  cards.forEach(setUp);
  if (sum) {
    const clear = element("button", { type: "button", textContent: "Clear all" });
    clear.addEventListener("click", () => {
      if (!confirm("Clear your notes and points on this page?")) return;
      cards.forEach((card) => {
        delete states[card.dataset.card];
        card.clear();
      });
      save();
    });
    const bar = element("progress", { max: cards.length });
    bar.setAttribute("aria-label", "Cards answered");
    sum.append(bar, element("output", {}), clear);
    sum.hidden = false;
    showSum();
  }
})();
