// Tokens of the last days by tenant and model.

import { count } from "./format.js";
import { Panel } from "./panel.js";
import { table } from "./table.js";

export class UsagePanel extends Panel {
  constructor() {
    super("usage", "Usage", "tokens of 30 days");
  }

  update(rows, isOperator) {
    this.show(rows, () =>
      table(
        "Usage",
        [
          isOperator ? ["Tenant", (row) => row.tenant] : null,
          ["Model", (row) => row.model],
          ["Prompt", (row) => count(row.prompt_tokens), true],
          ["Output", (row) => count(row.output_tokens), true],
          ["Trained", (row) => count(row.trained_tokens), true],
        ],
        rows,
        "Nothing used yet.",
      ),
    );
  }
}
