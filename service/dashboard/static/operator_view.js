// What an admin's key shows: the whole service.

import { AdaptersPanel } from "./adapters.js";
import { attained, AttainmentPanel } from "./attainment.js";
import { element } from "./element.js";
import { count, percent, rate, UNKNOWN } from "./format.js";
import { JobsPanel } from "./jobs.js";
import { LeasesPanel } from "./leases.js";
import { Rate } from "./rate.js";
import { StepsPanel } from "./steps.js";
import { Tiles } from "./tiles.js";
import { UsagePanel } from "./usage.js";
import { WorkersPanel } from "./workers.js";

const GOOD_SHARE = 0.99; // what the service promises

export class OperatorView {
  #api;
  #workers = [];
  #output = new Rate();
  #trained = new Rate();
  #tiles = new Tiles({
    on: "SLO kept, training on",
    off: "SLO kept, training off",
    output: "Output tokens/s",
    trained: "Training tokens/s",
    batch: "In the batch",
    kv: "KV used",
    prefix: "Prefix cache hits",
    dropped: "Dropped by KV policies",
  });

  constructor(api) {
    this.#api = api;
    this.steps = new StepsPanel(api);
    this.jobs = new JobsPanel(api, "/admin/jobs");
    this.attainment = new AttainmentPanel();
    this.adapters = new AdaptersPanel(() => this.#residents());
    this.usage = new UsagePanel();
    this.workers = new WorkersPanel();
    this.leases = new LeasesPanel();
    const panels = [
      ...[this.steps, this.jobs, this.attainment, this.leases],
      ...[this.workers, this.adapters, this.usage],
    ];
    this.element = element(
      "div",
      { class: "view operator" },
      this.#tiles.element,
      ...panels.map((panel) => panel.element),
    );
  }

  /** Keep it fresh: `poll` runs each part at its pace. */
  start(poll) {
    poll.every(2000, () => this.#refreshWorkers()); // workers report as often
    poll.every(2000, () => this.#refreshJobs());
    poll.every(5000, () => this.#refreshStores());
  }

  async #refreshWorkers() {
    this.#workers = await this.#api.list("/admin/workers");
    this.workers.update(this.#workers);
    const slo = this.#workers.flatMap((worker) => worker.slo);
    const classes = Object.assign({}, ...this.#workers.map((worker) => worker.service_classes));
    this.attainment.update(slo, classes);
    this.#showGlance(slo);
    await this.steps.update(this.#workers);
  }

  async #refreshJobs() {
    const jobs = await this.jobs.refresh();
    this.leases.update(jobs, await this.#api.get("/admin/outbox"));
  }

  async #refreshStores() {
    this.adapters.update(await this.#api.list("/admin/adapters?limit=50"));
    this.usage.update(await this.#api.list("/admin/usage"), true);
  }

  /** Shortened digest -> worker -> the tier nearest to its device that holds the adapter. */
  #residents() {
    const held = new Map();
    for (const worker of this.#workers) {
      for (const { tier, digests } of worker.adapter_tiers.toReversed()) {
        for (const digest of digests) {
          held.set(digest, { ...held.get(digest), [worker.id]: tier });
        }
      }
    }
    return held;
  }

  #showGlance(slo) {
    this.#showShare("on", attained(slo, (row) => row.training_active));
    this.#showShare("off", attained(slo, (row) => !row.training_active));
    const loads = this.#workers.flatMap((worker) => worker.load ?? []);
    const sum = (key) => loads.reduce((total, load) => total + load[key], 0);
    this.#output.add(sum("generation_tokens"));
    this.#trained.add(sum("trained_tokens"));
    this.#tiles.set("output", rate(this.#output.perSecond), "over 10 s");
    this.#tiles.set("trained", rate(this.#trained.perSecond), "over 10 s");
    this.#tiles.set("batch", count(sum("num_running")), `${count(sum("num_waiting"))} waiting`);
    const workers = loads.length === 1 ? "1 worker" : `${loads.length} workers`;
    const used = loads.length ? Math.max(...loads.map((load) => load.kv_usage)) : null;
    this.#tiles.set("kv", used === null ? UNKNOWN : percent(used), workers);
    this.#showPart("prefix", sum("prefix_hits"), sum("prefix_queries"), "tokens");
    const dropped = sum("kv_dropped_tokens");
    this.#showPart("dropped", dropped, dropped + sum("kv_kept_tokens"), "prompt tokens");
  }

  #showPart(id, part, all, unit) {
    const note = `of ${count(all)} ${unit} since the start`;
    this.#tiles.set(id, all ? percent(part / all) : UNKNOWN, all ? note : "none yet");
  }

  #showShare(id, { within, all }) {
    if (!all) return this.#tiles.set(id, UNKNOWN, "no answer with a target yet");
    const mood = within / all >= GOOD_SHARE ? "good" : "bad";
    return this.#tiles.set(id, percent(within / all), `of ${count(all)} measured`, mood);
  }
}
