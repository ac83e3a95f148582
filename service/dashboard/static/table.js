// Tables: a caption for those who cannot see the card, and numbers on the right.

import { element } from "./element.js";

/**
 * @param caption what the table is about
 * @param columns `[title, row => node or text, isNumber]`, nulls left out
 * @param rows any values
 * @param nothing the sentence for no rows
 */
export function table(caption, columns, rows, nothing) {
  if (!rows.length) return element("p", { class: "nothing" }, nothing);
  const kept = columns.filter((column) => column !== null);
  const head = kept.map(([title, , isNumber]) =>
    element("th", { scope: "col", class: isNumber && "number" }, title),
  );
  const body = rows.map((row) => element("tr", {}, ...kept.map((column) => cell(column, row))));
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...body),
    ),
  );
}

function cell([, value, isNumber], row) {
  return element("td", { class: isNumber && "number" }, value(row));
}
