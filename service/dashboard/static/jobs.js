// The newest jobs, those that run first, each with its curve.

import { jobCard } from "./job_card.js";
import { element } from "./element.js";
import { Panel } from "./panel.js";

const SHOWN = 12;
const ORDER = ["running", "queued", "validating_files", "paused"];

export class JobsPanel extends Panel {
  #api;
  #path;
  #curves = new Map(); // job id -> {status, points}

  /** `path`: where the jobs and, below them, their curves are. */
  constructor(api, path) {
    super("jobs", "Jobs", "loss, step by step");
    this.#api = api;
    this.#path = path;
  }

  async refresh() {
    const jobs = await this.#api.list(`${this.#path}?limit=50`);
    const shown = jobs.toSorted((a, b) => place(a) - place(b)).slice(0, SHOWN);
    await Promise.all(shown.map((job) => this.#refreshCurve(job)));
    const cards = shown.map((job) => ({ job, curve: this.#curves.get(job.id).points }));
    this.show(cards, draw);
    return jobs;
  }

  /** A job that is over keeps the curve that was read after its end. */
  async #refreshCurve(job) {
    const known = this.#curves.get(job.id);
    if (known?.status === job.status && job.status !== "running") return;
    const points = await this.#api.list(`${this.#path}/${encodeURIComponent(job.id)}/curve`);
    this.#curves.set(job.id, { status: job.status, points });
  }
}

function place(job) {
  const found = ORDER.indexOf(job.status);
  return found < 0 ? ORDER.length : found;
}

function draw(cards) {
  if (!cards.length) return element("p", { class: "nothing" }, "No job yet.");
  return element("div", { class: "jobs" }, ...cards.map(({ job, curve }) => jobCard(job, curve)));
}
