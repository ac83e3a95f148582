// A job's loss over its steps: a line for training, dots where it was validated.

import { shape } from "./element.js";
import { loss } from "./format.js";

const WIDTH = 320;
const HEIGHT = 84;
const MARGIN = 4;
const LABEL = 40;

/** `points` oldest first, at least one. */
export function lossChart(points) {
  const [first, last] = [points[0], points.at(-1)];
  const losses = points.flatMap((point) => [point.train_loss, point.valid_loss ?? point.train_loss]);
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const x = scale(first.step, Math.max(last.step, first.step + 1), LABEL, WIDTH - MARGIN);
  const y = scale(low, high > low ? high : low + 1, HEIGHT - MARGIN - 2, MARGIN + 2);
  const line = points.map((point) => `${x(point.step)},${y(point.train_loss)}`).join(" ");
  const dots = points
    .filter((point) => point.valid_loss !== null)
    .map((point) => shape("circle", { class: "valid", cx: x(point.step), cy: y(point.valid_loss), r: 3 }));
  return shape(
    "svg",
    {
      class: "loss",
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": `Loss from ${loss(first.train_loss)} to ${loss(last.train_loss)} at step ${last.step}`,
    },
    label(high, MARGIN + 8),
    label(low, HEIGHT - MARGIN),
    shape("polyline", { class: "train", points: line }),
    ...dots,
  );
}

function scale(from, to, fromPx, toPx) {
  return (value) => fromPx + ((value - from) / (to - from)) * (toPx - fromPx);
}

function label(value, y) {
  return shape("text", { class: "tick", x: LABEL - 6, y, "text-anchor": "end" }, loss(value));
}
