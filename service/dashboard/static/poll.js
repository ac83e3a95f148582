// Runs tasks again and again, each at its own pace, while somebody looks at the page.

export class Poll {
  #timers = new Set();
  #isOver = false;
  #report;

  /** `report(error or null)` is told after every run of a task. */
  constructor(report) {
    this.#report = report;
  }

  /** Run the async `task` now and then `everyMs` after each end of it. */
  every(everyMs, task) {
    const run = async () => {
      if (!document.hidden) await this.#attempt(task);
      if (this.#isOver) return;
      const timer = setTimeout(() => {
        this.#timers.delete(timer);
        run();
      }, everyMs);
      this.#timers.add(timer);
    };
    run();
  }

  async #attempt(task) {
    try {
      await task();
      if (!this.#isOver) this.#report(null);
    } catch (error) {
      if (!this.#isOver) this.#report(error);
    }
  }

  stop() {
    this.#isOver = true;
    this.#timers.forEach(clearTimeout);
  }
}
