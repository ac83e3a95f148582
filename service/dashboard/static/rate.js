// Tokens per second from totals that only grow, over the last seconds.

const WINDOW_MS = 10_000;

export class Rate {
  #samples = [];

  /** Take in a total as it is now; a smaller one than before means that an engine began anew. */
  add(total, nowMs = performance.now()) {
    if (this.#samples.length && total < this.#samples.at(-1).total) this.#samples = [];
    this.#samples.push({ total, nowMs });
    while (this.#samples.length > 2 && this.#samples[1].nowMs < nowMs - WINDOW_MS) {
      this.#samples.shift();
    }
  }

  get perSecond() {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    if (!first || first === last) return 0;
    return ((last.total - first.total) / (last.nowMs - first.nowMs)) * 1000;
  }
}
