// Adapters: their versions, what answers to their name, and where they are resident.

import { bytes, UNKNOWN } from "./format.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

export class AdaptersPanel extends Panel {
  #residents;

  /**
   * `residents`: a function that gives content digest -> ids of the workers that hold it, or null
   * for a viewer who may not know.
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
          ["Answers", (row) => row.answers],
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
    answers: answering === null ? "checkpoints only" : `@${answering}`,
    numVersions: String(adapter.versions.length),
    resident: residents && residence(adapter.versions, residents),
    size: newest ? bytes(newest.bytes) : UNKNOWN,
  };
}

function residence(versions, residents) {
  const held = versions.filter((version) => residents.has(version.digest));
  const places = held.map((version) => `@${version.version} on ${residents.get(version.digest)}`);
  return places.join(", ") || UNKNOWN;
}
