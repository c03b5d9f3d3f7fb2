/* "Report a problem" says more when it is pressed: the section, and the step of each stepper. */
(() => {
  "use strict";

  const where = () => {
    const lines = [];
    if (location.hash) lines.push(`Section: ${decodeURIComponent(location.hash)}`);
    for (const stepper of document.querySelectorAll("[data-step][data-live]")) {
      const title = stepper.querySelector(".mv-scenario-title")?.textContent ?? "stepper";
      lines.push(`Stepper "${title}": step ${stepper.dataset.step}`);
    }
    return [...lines, "", "What is wrong: "].join("\n");
  };

  for (const link of document.querySelectorAll("a.btn-report")) {
    const first = new URL(link.href);
    link.addEventListener("click", () => {
      const url = new URL(first);
      const name = url.searchParams.has("body") ? "body" : "issue[description]";
      url.searchParams.set(name, `${url.searchParams.get(name)}\n${where()}`);
      link.href = url;
    });
  }
})();
