// A titled card. It is drawn again only when what it shows has changed, so that a selection stays.

import { element } from "./element.js";

export class Panel {
  #shown = null;

  constructor(id, title, hint = "") {
    this.body = element("div", { class: "body" });
    this.element = element(
      "section",
      { id, class: "panel", "aria-labelledby": `${id}-title` },
      element("h2", { id: `${id}-title` }, title, hint && element("small", {}, hint)),
      this.body,
    );
  }

  /** Show what `draw` makes of `data`: one node or several. */
  show(data, draw) {
    const content = JSON.stringify(data);
    if (content === this.#shown) return;
    this.#shown = content;
    this.body.replaceChildren(...[draw(data)].flat());
  }
}
