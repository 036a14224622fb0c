// Marks of a person: kept in this browser, and exported as the table `review_marks.csv`.
"use strict";
var selfvox = window.selfvox || {};
window.selfvox = selfvox;

/** Marks of one report; `id` of the report, `earlier` marks by case to begin with. */
selfvox.makeMarks = function (id, earlier) {
  const key = `selfvox-marks-${id}`;
  let marks = { ...earlier };
  try {
    marks = { ...marks, ...JSON.parse(localStorage.getItem(key) || "{}") };
  } catch {
    // a browser may refuse to keep anything of a file
  }

  function change(shown, changes) {
    const before = marks[shown.id] || { mark: "", note: "", corrected: "" };
    const marked = new Date().toISOString().replace(/\.\d+Z$/, "Z");
    marks[shown.id] = { ...before, ...changes, marked, label_sha256: shown.label_sha256 };
    try {
      localStorage.setItem(key, JSON.stringify(marks));
      return true;
    } catch {
      return false;
    }
  }

  function cell(text) {
    // a spreadsheet would run it as a formula
    const safe = /^[=+\-@\t\r\n]/.test(text) ? `'${text}` : text;
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  /** The table, in the order of the cases; those without a mark, a note or a correction are left out. */
  function table(cases) {
    const columns = ["case", "mark", "note", "marked", "label_sha256", "corrected"];
    const rows = cases
      .map((shown) => ({ case: shown.id, ...marks[shown.id] }))
      .filter((row) => row.mark || row.note || row.corrected)
      .map((row) => columns.map((name) => cell(row[name] || "")).join(","));
    return [columns.join(","), ...rows].join("\n") + "\n";
  }

  return { get: (shown) => marks[shown.id] || {}, change, table };
};
