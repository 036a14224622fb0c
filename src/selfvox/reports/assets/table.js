// Tables that sort by a click on a heading; a row of a picture stays below the row that it is of.
"use strict";
(() => {
  function value(row, column, kind) {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    if (kind !== "number") return text.toLowerCase();
    const number = parseFloat(text);
    return Number.isNaN(number) ? null : number;
  }

  function sort(table, column, kind, descending) {
    const body = table.tBodies[0];
    const rows = [...body.rows].filter((row) => !row.dataset.of);
    const pictures = new Map([...body.rows].map((row) => [row.dataset.of, row]));
    rows.sort((first, second) => {
      const a = value(first, column, kind);
      const b = value(second, column, kind);
      if (a === null || b === null) return (a === null) - (b === null); // unknown ones last
      const order = kind === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return descending ? -order : order;
    });
    for (const row of rows) {
      body.append(row);
      const picture = pictures.get(row.dataset.key);
      if (row.dataset.key && picture) body.append(picture);
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      if (!heading.dataset.sort) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const descending = heading.getAttribute("aria-sort") === "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        sort(table, column, heading.dataset.sort, descending);
      });
    });
  }
})();
