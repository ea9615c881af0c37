"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    const raw = cell.dataset.value;
    if (raw === undefined) return null;
    return cell.hasAttribute("data-number") ? Number(raw) : raw;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

  // A column is sorted by its values; cells without one stay last either way; equal ones keep their order.
  const sort = (table, column, sign) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  };
  for (const button of all("table.data th button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && head.cellIndex === 0);
      for (const other of all("th", head.parentElement)) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort(head.closest("table"), head.cellIndex, up ? 1 : -1);
    });
  }

  // A text that a spreadsheet would run as a formula is marked as text.
  const quoted = (value) => {
    let text = String(value ?? "");
    if (/^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text))) text = "'" + text;
    return /[",\n\r]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  const csvOf = (table) => {
    const heads = all("thead th", table).map((head) => head.textContent.trim());
    const rows = [...table.tBodies[0].rows];
    const ranged = heads.map((_, column) => rows.some((row) => row.cells[column].dataset.low !== undefined));
    const line = (row) => heads.flatMap((_, column) => {
      const data = row.cells[column].dataset;
      return ranged[column] ? [data.value, data.low, data.high] : [data.value];
    });
    const top = heads.flatMap((head, column) => (ranged[column] ? [head, head + " low", head + " high"] : [head]));
    return [top, ...rows.map(line)].map((cells) => cells.map(quoted).join(",")).join("\r\n") + "\r\n";
  };
  window.csvOf = csvOf;
  for (const button of all("button[data-csv]")) {
    button.addEventListener("click", () => {
      // The table above the button: two results of a comparison may have one name.
      const table = button.parentElement.previousElementSibling.querySelector("table");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(["\ufeff" + csvOf(table)], { type: "text/csv" }));
      link.download = table.dataset.name + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  }

  for (const button of all("button[data-set]")) {
    button.addEventListener("click", () => {
      const group = button.closest("[data-show]");
      group.dataset.show = button.dataset.set;
      for (const other of all("button[data-set]", group)) other.setAttribute("aria-pressed", String(other === button));
    });
  }

  for (const select of all("select[data-filter]")) {
    select.addEventListener("change", () => {
      for (const face of all(".face", document.getElementById(select.dataset.filter))) {
        face.hidden = select.value !== "" && face.dataset.emotion !== select.value;
      }
    });
  }
})();
