// A vertical axis: a few round numbers with their lines.

import { shape } from "./element.js";

/** The least of 1, 2, 5 x 10^n that is at least `value`. */
export function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999);
}

/**
 * The unit, and lines with their numbers from 0 to `top`.
 * @param band `{x, y, width, height}` of the plot
 * @param valueAt what stands at a share of the height
 */
export function axis(band, top, unit, valueAt = (share) => top * share) {
  const lines = [0, 0.5, 1].flatMap((share) => {
    const y = band.y + band.height * (1 - share);
    const text = String(Number(valueAt(share).toPrecision(3)));
    return [
      shape("line", { class: "grid", x1: band.x, x2: band.x + band.width, y1: y, y2: y }),
      shape("text", { class: "tick", x: band.x - 6, y: y + 4, "text-anchor": "end" }, text),
    ];
  });
  return [shape("text", { class: "tick", x: band.x, y: band.y - 6 }, unit), ...lines];
}
