// One fine-tuning job: where it stands, how fast it is, and its loss curve.

import { element } from "./element.js";
import { count, duration, loss, rate } from "./format.js";
import { lossChart } from "./loss_chart.js";

/** `curve`: points oldest first, maybe none. */
export function jobCard(job, curve) {
  const newest = curve.at(-1);
  return element(
    "article",
    { class: "job", "data-job": job.id },
    element("h3", {}, job.suffix ?? job.id, status(job.status)),
    element("p", { class: "quiet" }, [job.tenant, job.model, job.id].filter(Boolean).join(" · ")),
    newest && lossChart(curve),
    newest && progress(newest),
    facts(job, newest),
    job.error && element("p", { class: "problem" }, job.error.message),
  );
}

function status(name) {
  return element("span", { class: `status ${name}` }, name.replace("_", " "));
}

function progress(point) {
  return element("progress", {
    max: point.total_steps,
    value: point.step,
    "aria-label": `Step ${point.step} of ${point.total_steps}`,
  });
}

function facts(job, newest) {
  const known = [];
  if (newest) {
    known.push(["step", `${count(newest.step)} of ${count(newest.total_steps)}`]);
    known.push(["loss", loss(newest.train_loss)]);
    known.push(["tokens/s", rate(newest.tokens_per_second)]);
  }
  if (newest && job.status === "running") known.push(["left", duration(newest.eta_seconds)]);
  if (job.trained_tokens) known.push(["trained", count(job.trained_tokens)]);
  const pairs = known.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value)),
  );
  return element("dl", { class: "facts" }, ...pairs);
}
