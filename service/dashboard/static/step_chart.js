// The engine's newest steps: above, what their tokens went to; below, what they took.
//
// Every step is as wide as every other, the newest at the right. Tokens are drawn by their square
// root: eight of decode must be seen beside five hundred of a prompt. A step can be pointed at, or
// walked to with the arrow keys; it is then told in words.

import { axis, roundUp } from "./axis.js";
import { element, shape } from "./element.js";
import { KINDS, tokensOf } from "./kinds.js";
import { stepText } from "./step_text.js";

const LEFT = 52;
const RIGHT = 8;
const BAND = 116;
const GAP = 34;
const TOP = 20;
const HEIGHT = TOP + 2 * BAND + GAP + 8;
const STEP_PX = 6;
const MAX_TARGETS_SHOWN = 3; // times the target; a longer step is cut off at the top

export class StepChart {
  #steps = [];
  #shown = [];
  #targets = [];
  #chosen = null; // index of the step that the reader looks at; null follows the newest

  constructor() {
    this.#buildPlot();
    this.readout = element("p", { class: "readout" });
    this.element = element("div", { class: "steps" }, legend(), this.plot, this.readout);
    new ResizeObserver(() => this.#draw()).observe(this.plot);
  }

  #buildPlot() {
    this.plot = shape("svg", {
      class: "plot",
      height: HEIGHT,
      tabindex: 0,
      role: "img",
      "aria-label": "Newest engine steps; the arrow keys walk through them",
    });
    this.plot.addEventListener("keydown", (event) => this.#walk(event));
    this.plot.addEventListener("pointermove", (event) => this.#point(event));
    this.plot.addEventListener("pointerleave", () => this.#choose(null));
  }

  /**
   * @param steps oldest first
   * @param targets `{name, tpotMs}` of the service classes that have one
   */
  show(steps, targets) {
    this.#steps = steps;
    this.#targets = targets;
    this.#draw();
  }

  #walk(event) {
    const last = this.#shown.length - 1;
    const chosen = this.#shown.findIndex((step) => step.index === this.#chosen);
    const at = chosen < 0 ? last : chosen;
    const places = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last };
    if (event.key === "Escape") this.#choose(null);
    if (!(event.key in places) || last < 0) return;
    event.preventDefault();
    this.#choose(this.#shown[Math.min(last, Math.max(0, places[event.key]))].index);
  }

  #point(event) {
    const x = event.clientX - this.plot.getBoundingClientRect().left - this.#firstX();
    const step = this.#shown[Math.floor(x / STEP_PX)];
    if (step) this.#choose(step.index);
  }

  #choose(index) {
    this.#chosen = index;
    this.readout.ariaLive = index === null ? "off" : "polite"; // news are not read out by themselves
    this.#draw();
  }

  #firstX() {
    return this.plot.clientWidth - RIGHT - this.#shown.length * STEP_PX;
  }

  #draw() {
    const width = this.plot.clientWidth - LEFT - RIGHT;
    if (width <= 0) return;
    this.#shown = this.#steps.slice(-Math.floor(width / STEP_PX));
    const tokens = { x: LEFT, y: TOP, width, height: BAND };
    const times = { ...tokens, y: TOP + BAND + GAP };
    this.plot.replaceChildren(...this.#tokens(tokens), ...this.#times(times), ...this.#cursor());
    const told = this.#shown.find((step) => step.index === this.#chosen) ?? this.#shown.at(-1);
    this.readout.textContent = told ? stepText(told) : "No step yet: the engine is idle.";
  }

  #tokens(band) {
    const top = roundUp(Math.max(8, ...this.#shown.map(tokensOf)));
    const y = (tokens) => band.y + band.height * (1 - Math.sqrt(tokens / top));
    const below = this.#shown.map(() => 0);
    const layers = KINDS.map((kind) => {
      const bars = this.#shown.map((step, place) => {
        const from = below[place];
        below[place] += step[kind.key];
        return this.#bar(place, y(below[place]), y(from) - y(below[place]));
      });
      return shape("path", { class: `fill ${kind.color}`, d: bars.join("") });
    });
    return [...axis(band, top, "tokens (square root)", (share) => top * share ** 2), ...layers];
  }

  #times(band) {
    const most = Math.max(1, ...this.#shown.flatMap((step) => [step.step_ms, step.predicted_ms]));
    const targets = this.#targets.map((target) => target.tpotMs);
    const limit = targets.length ? MAX_TARGETS_SHOWN * Math.max(...targets) : most;
    const top = roundUp(Math.max(Math.min(most, limit), ...targets));
    const bottom = band.y + band.height;
    const y = (ms) => bottom - (Math.min(Math.max(ms, 0), top) / top) * band.height;
    const real = this.#shown.map((step, place) =>
      this.#bar(place, y(step.step_ms), bottom - y(step.step_ms)),
    );
    return [
      ...axis(band, top, "ms"),
      shape("path", { class: "fill real", d: real.join("") }),
      shape("path", { class: "line slack", d: this.#line("slack_ms", y) }),
      shape("path", { class: "line predicted", d: this.#line("predicted_ms", y) }),
      ...this.#targets.flatMap((target) => targetLine(target, y(target.tpotMs), band)),
    ];
  }

  #bar(place, y, height) {
    if (height <= 0) return "";
    return `M${this.#firstX() + place * STEP_PX + 0.5},${y}h${STEP_PX - 1}v${height}h${1 - STEP_PX}z`;
  }

  /** A line through a step's number, broken where there is none. */
  #line(key, y) {
    let isOpen = false;
    const pieces = this.#shown.map((step, place) => {
      if (step[key] === null) isOpen = false;
      if (step[key] === null) return "";
      const from = `${this.#firstX() + place * STEP_PX},${y(step[key])}`;
      const piece = `${isOpen ? "L" : "M"}${from}h${STEP_PX}`;
      isOpen = true;
      return piece;
    });
    return pieces.join("");
  }

  #cursor() {
    const place = this.#shown.findIndex((step) => step.index === this.#chosen);
    if (place < 0) return [];
    const x = this.#firstX() + (place + 0.5) * STEP_PX;
    return [shape("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: HEIGHT - 8 })];
  }
}

function targetLine(target, y, band) {
  const right = band.x + band.width;
  const text = `TPOT target of class ${target.name}`;
  return [
    shape("line", { class: "target", x1: band.x, x2: right, y1: y, y2: y }),
    shape("text", { class: "label", x: right, y: y - 4, "text-anchor": "end" }, text),
  ];
}

function legend() {
  const entries = [
    ...KINDS.map((kind) => [kind.color, kind.name]),
    ["real", "time"],
    ["predicted", "predicted"],
    ["slack", "slack for training"],
  ];
  const items = entries.map(([color, name]) =>
    element("li", {}, element("span", { class: `swatch ${color}` }), name),
  );
  return element("ul", { class: "legend" }, ...items);
}
