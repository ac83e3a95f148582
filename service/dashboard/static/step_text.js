// One engine step in words.

import { clock, count, milliseconds } from "./format.js";
import { KINDS } from "./kinds.js";

export function stepText(step) {
  const tokens = KINDS.filter((kind) => step[kind.key])
    .map((kind) => `${count(step[kind.key])} ${kind.name}`)
    .join(" + ");
  const slack = step.slack_ms === null ? "nobody waits" : `slack ${milliseconds(step.slack_ms)}`;
  return [
    `Step ${step.index} at ${clock(step.began_at)}`,
    tokens ? `${tokens} tokens` : "units only",
    `${milliseconds(step.step_ms)}, predicted ${milliseconds(step.predicted_ms)}`,
    slack,
    step.jobs.length ? `${step.jobs.length} jobs, ${step.num_units} units` : "no training",
    step.was_cut ? "cut short for an arrival" : "",
  ]
    .filter(Boolean)
    .join(" · ");
}
