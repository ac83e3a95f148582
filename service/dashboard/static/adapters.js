// Adapters: their versions, what answers to their name, and where they are resident.

import { bytes, UNKNOWN } from "./format.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

export class AdaptersPanel extends Panel {
  #residents;

  /**
   * `residents`: a function that gives a resident's key (content digest, or `job:ID` of one in
   * training) -> ids of the workers that hold it; null for a viewer who may not know.
   */
  constructor(residents = null) {
    super("adapters", "Adapters", "newest first");
    this.#residents = residents;
  }

  update(adapters) {
    const residents = this.#residents?.() ?? null;
    const rows = adapters.map((adapter) => rowOf(adapter, residents));
    const isOperator = residents !== null;
    this.show(rows, () =>
      table(
        "Adapters",
        [
          ["Name", (row) => row.name],
          isOperator ? ["Tenant", (row) => row.tenant] : null,
          ["Answers as", (row) => row.answers],
          ["Versions", (row) => row.numVersions, true],
          isOperator ? ["Resident", (row) => row.resident] : null,
          ["Size", (row) => row.size, true],
        ],
        rows,
        "No adapter yet: a job's first checkpoint makes one.",
      ),
    );
  }
}

function rowOf(adapter, residents) {
  const answering = adapter.live_version ?? adapter.final_version;
  const newest = adapter.versions.at(-1);
  return {
    name: adapter.model,
    tenant: adapter.tenant,
    answers: answering === null ? "none yet" : `@${answering}`,
    numVersions: String(adapter.versions.length),
    resident: residents && residence(adapter, residents),
    size: newest ? bytes(newest.bytes) : UNKNOWN,
  };
}

/** The versions that workers hold, and the one in training, which has no number yet. */
function residence(adapter, residents) {
  const keys = adapter.versions.map((version) => [version.digest, `@${version.version}`]);
  const held = [...keys, [`job:${adapter.job_id}`, "in training"]]
    .filter(([key]) => residents.has(key))
    .map(([key, name]) => `${name} on ${residents.get(key).join(", ")}`);
  return held.join("; ") || UNKNOWN;
}
