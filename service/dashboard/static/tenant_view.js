// What a tenant's key shows: its jobs, adapters and usage, and nobody else's.

import { AdaptersPanel } from "./adapters.js";
import { element } from "./element.js";
import { JobsPanel } from "./jobs.js";
import { UsagePanel } from "./usage.js";

export class TenantView {
  #api;

  constructor(api) {
    this.#api = api;
    this.jobs = new JobsPanel(api, "/fine_tuning/jobs");
    this.adapters = new AdaptersPanel();
    this.usage = new UsagePanel();
    const panels = [this.jobs, this.adapters, this.usage];
    this.element = element("div", { class: "view" }, ...panels.map((panel) => panel.element));
  }

  /** Keep it fresh: `poll` runs each part at its pace. */
  start(poll) {
    poll.every(2000, () => this.jobs.refresh());
    poll.every(5000, () => this.#refreshStores());
  }

  async #refreshStores() {
    this.adapters.update(await this.#api.list("/adapters?limit=50&order=desc"));
    this.usage.update(await this.#api.list("/usage"), false);
  }
}
