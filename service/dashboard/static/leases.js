// Who trains what for how long still, and what waits in the outbox.

import { element } from "./element.js";
import { count, duration } from "./format.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

export class LeasesPanel extends Panel {
  constructor() {
    super("leases", "Leases and outbox");
  }

  update(jobs, outbox) {
    const rows = jobs.filter((job) => job.lease !== null);
    this.show({ rows: rows.map(({ id, lease, num_crashes }) => ({ id, lease, num_crashes })), outbox }, () => [
      element("p", { class: "quiet", id: "outbox" }, outboxText(outbox)),
      table(
        "Leases",
        [
          ["Job", (job) => job.id],
          ["Worker", (job) => job.lease.owner],
          ["Epoch", (job) => count(job.lease.epoch), true],
          ["Left", (job) => (job.lease.left_s < 0 ? "run out" : duration(job.lease.left_s)), true],
          ["Crashes", (job) => count(job.num_crashes), true],
        ],
        rows,
        "No job is held by a worker.",
      ),
    ]);
  }
}

function outboxText({ num_unsent, oldest_s }) {
  if (!num_unsent) return "Outbox: everything is sent.";
  return `Outbox: ${count(num_unsent)} to send, the oldest for ${duration(oldest_s)}.`;
}
