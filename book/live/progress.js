/* The page "Your progress": what this browser keeps of the exercises. */

import { forgetMarks, marks } from "./marks.js";

const cellOf = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

const drawProgress = (box) => {
  const exercises = JSON.parse(box.querySelector("script").textContent);
  const kept = marks();
  const table = document.createElement("table");
  table.className = "table";
  const head = table.createTHead().insertRow();
  for (const text of ["exercise", "parts passed", "points"]) head.append(cellOf("th", text));
  const body = table.createTBody();
  let [points, outOf] = [0, 0];
  for (const { title, url, parts, extra } of exercises) {
    const row = body.insertRow();
    const link = Object.assign(document.createElement("a"), { href: url, textContent: title });
    row.insertCell().append(link);
    const earned = parts.map((part) => kept[part.id]?.points ?? 0);
    const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
    const passed = parts.filter((part, i) => earned[i] === part.points).map((part) => part.id);
    row.append(cellOf("td", passed.length ? `${passed.length} of ${parts.length} (${passed.join(", ")})` : `0 of ${parts.length}`));
    row.append(cellOf("td", `${sum(earned)} of ${sum(parts.map((part) => part.points))}`));
    if (extra) continue; // shown, but no part of the sum
    points += sum(earned);
    outOf += sum(parts.map((part) => part.points));
  }
  const total = table.createTFoot().insertRow();
  for (const text of [exercises.some(({ extra }) => extra) ? "all but the extra ones (X)" : "all", "", `${points} of ${outOf}`]) total.append(cellOf("th", text));
  const forget = Object.assign(document.createElement("button"), { type: "button", className: "mv-code-button", textContent: "Forget my points" });
  forget.addEventListener("click", () => {
    if (!window.confirm("Forget the points of all exercises? Your answers stay.")) return;
    forgetMarks();
    drawProgress(box);
  });
  const frame = document.createElement("div");
  frame.className = "pst-scrollable-table-container";
  frame.append(table);
  box.querySelector(".mv-progress-table").replaceChildren(frame, forget);
  box.dataset.points = points;
};

const startProgress = () => {
  for (const box of document.querySelectorAll(".mv-progress")) drawProgress(box);
};

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", startProgress);
else startProgress();
