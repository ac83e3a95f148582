// The step ring of one worker, chosen from the live ones.

import { element } from "./element.js";
import { Panel } from "./panel.js";
import { StepChart } from "./step_chart.js";

const NUM_STEPS = 256;

export class StepsPanel extends Panel {
  #api;
  #chart = new StepChart();
  #choice = element("select", { "aria-label": "Worker" });
  #known = ""; // ids that are offered
  #targets = [];

  constructor(api) {
    super("steps", "Engine steps", "what the tokens went to, and what that took");
    this.#api = api;
    this.#choice.addEventListener("change", () => this.refresh());
    this.body.append(this.#choice, this.#chart.element);
  }

  /** Offer the live workers, and show the newest steps of the one that is chosen. */
  async update(workers) {
    const ids = workers.map((worker) => worker.id);
    if (ids.join() !== this.#known) {
      const chosen = this.#choice.value;
      this.#choice.replaceChildren(...ids.map((id) => element("option", { value: id }, id)));
      if (ids.includes(chosen)) this.#choice.value = chosen;
      this.#known = ids.join();
    }
    this.#choice.hidden = ids.length < 2;
    const worker = workers.find(({ id }) => id === this.#choice.value);
    this.#targets = worker ? targetsOf(worker) : [];
    await this.refresh();
  }

  async refresh() {
    const id = this.#choice.value;
    const path = `/admin/workers/${encodeURIComponent(id)}/steps?limit=${NUM_STEPS}`;
    const steps = id ? await this.#api.list(path) : [];
    this.#chart.show(steps.toReversed(), this.#targets);
  }
}

function targetsOf(worker) {
  return Object.entries(worker.service_classes)
    .filter(([, targets]) => targets.tpot_ms !== null)
    .map(([name, targets]) => ({ name, tpotMs: targets.tpot_ms }));
}
