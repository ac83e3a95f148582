// The live workers and what each holds.

import { count, UNKNOWN } from "./format.js";
import { meter } from "./meter.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

export class WorkersPanel extends Panel {
  constructor() {
    super("workers", "Workers", "live now");
  }

  update(workers) {
    const rows = workers.map(({ id, base_models, load, adapter_tiers }) => ({
      id,
      base_models,
      load,
      tiers: adapter_tiers.map(({ tier, num_adapters }) => `${num_adapters} ${tier}`).join(", "),
    }));
    const of = (row, key) => (row.load ? count(row.load[key]) : UNKNOWN);
    this.show(rows, () =>
      table(
        "Workers",
        [
          ["Worker", (row) => row.id],
          ["Base models", (row) => row.base_models.join(", ")],
          ["KV used", (row) => (row.load ? meter(row.load.kv_usage, "K/V in use") : UNKNOWN)],
          ["Running", (row) => of(row, "num_running"), true],
          ["Waiting", (row) => of(row, "num_waiting"), true],
          ["Preempted", (row) => of(row, "num_preemptions"), true],
          ["Jobs", (row) => row.load?.active_jobs.length ?? UNKNOWN, true],
          ["Adapters", (row) => row.tiers],
        ],
        rows,
        "No worker is up.",
      ),
    );
  }
}
