// How often each class's targets were kept, apart for the time that a job trained.

import { count, percent, UNKNOWN } from "./format.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

/** Answers within and in all, over the rows of `slo` that `keep` lets through. */
export function attained(slo, keep) {
  return slo.filter(keep).reduce(
    (sum, row) => ({
      within: sum.within + row.num_within,
      all: sum.all + row.num_within + row.num_over,
    }),
    { within: 0, all: 0 },
  );
}

export class AttainmentPanel extends Panel {
  constructor() {
    super("attainment", "Targets kept", "since the engines started");
  }

  /** `slo`: rows of all workers; `classes`: name -> targets. */
  update(slo, classes) {
    const rows = Object.entries(classes).flatMap(([name, targets]) =>
      ["ttft", "tpot"]
        .filter((target) => targets[`${target}_ms`] !== null)
        .map((target) => rowOf(slo, name, target, targets[`${target}_ms`])),
    );
    this.show(rows, () =>
      table(
        "Targets kept by service class",
        [
          ["Class", (row) => row.name],
          ["Target", (row) => row.target],
          ["Training on", (row) => row.on, true],
          ["Training off", (row) => row.off, true],
        ],
        rows,
        "No class has a target.",
      ),
    );
  }
}

function rowOf(slo, name, target, limitMs) {
  const of = (training) =>
    shareText(
      attained(
        slo,
        (row) =>
          row.service_class === name && row.target === target && row.training_active === training,
      ),
    );
  return { name, target: `${target.toUpperCase()} ${limitMs} ms`, on: of(true), off: of(false) };
}

function shareText({ within, all }) {
  return all ? `${percent(within / all)} of ${count(all)}` : UNKNOWN;
}
