"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Colours: what the system asks for, until the reader chooses.
  const theme = document.getElementById("theme");
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; showTheme(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", showTheme);
  showTheme();

  // Sorting: numbers by data-v, or as they are written; what is missing always goes last. Text goes as people read it, and
  // equal rows keep their order.
  const text = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const value = (cell) => Number.parseFloat((cell.dataset.v ?? cell.textContent).replaceAll(",", "").replace("∞", "Infinity"));
  function compare(a, b, kind, sign) {
    if (kind === "text") return sign * text.compare(a.textContent.trim(), b.textContent.trim());
    const [x, y] = [value(a), value(b)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return sign * (x === y ? 0 : x - y);
  }
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const kind = header.dataset.sort;
      if (!kind) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => {
        const before = header.getAttribute("aria-sort");
        const down = before ? before === "ascending" : kind === "down";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column], kind, down ? -1 : 1));
        body.append(...rows);
        if (table.classList.contains("ranking")) table.classList.toggle("ranks", column === 0 && !down);
      });
    });
    if (table.classList.contains("ranking")) headers[0].setAttribute("aria-sort", "ascending");
  }

  // Filtering: every word must be in the name. Rows, lines and images of a defense go together.
  for (const section of document.querySelectorAll("section[data-filter]")) {
    const input = section.querySelector(".filter input");
    const status = section.querySelector("[role=status]");
    const named = [...section.querySelectorAll("[data-name]")];
    const all = new Set([...section.querySelectorAll(".ranking [data-name], .apart [data-name]")].map((e) => e.dataset.name));
    input.addEventListener("input", () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const shown = new Set([...all].filter((name) => words.every((word) => name.toLowerCase().includes(word))));
      for (const element of named) element.toggleAttribute("hidden", !shown.has(element.dataset.name));
      status.textContent = words.length ? `${shown.size} of ${all.size} defenses shown` : "";
    });
  }
})();
