// A share of a whole, as a bar with its number.

import { element } from "./element.js";
import { percent } from "./format.js";

export function meter(share, label) {
  const bar = element("meter", { min: 0, max: 1, value: share, "aria-label": label });
  return element("span", { class: "meter" }, bar, element("span", {}, percent(share)));
}
