// The glance: a row of numbers, each with what it means below it.

import { element } from "./element.js";

export class Tiles {
  #tiles = new Map();

  /** `names`: id -> title. */
  constructor(names) {
    this.element = element("dl", { class: "tiles", id: "glance" });
    for (const [id, title] of Object.entries(names)) {
      const value = element("dd", { class: "value" }, "–");
      const note = element("dd", { class: "note" });
      const tile = element("div", { id: `tile-${id}` }, element("dt", {}, title), value, note);
      this.#tiles.set(id, { tile, value, note });
      this.element.append(tile);
    }
  }

  /** `mood` is good, bad or nothing. */
  set(id, value, note = "", mood = "") {
    const tile = this.#tiles.get(id);
    tile.value.textContent = value;
    tile.note.textContent = note;
    tile.tile.className = mood;
  }
}
