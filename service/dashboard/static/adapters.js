// Adapters: their versions, what answers to their name, and where they are resident.

import { bytes, UNKNOWN } from "./format.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

const TOLD_DIGITS = 16; // of a digest, in workers' reports

export class AdaptersPanel extends Panel {
  #residents;

  /**
   * `residents`: a function that gives shortened content digest -> worker -> tier; null for a
   * viewer who may not know.
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

/** The versions that workers hold, each with its workers and the nearest tier there. */
function residence(adapter, residents) {
  const held = adapter.versions.flatMap(({ version, digest }) =>
    Object.entries(residents.get(digest.slice(0, TOLD_DIGITS)) ?? {}).map(
      ([worker, tier]) => `@${version} in ${worker}'s ${tier}`,
    ),
  );
  return held.join("; ") || UNKNOWN;
}
