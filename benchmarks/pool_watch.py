"""Who holds the memory pool while an engine runs, and what training makes of its part."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from scheduler.policy.training import TrainDemand, Training
from workers.activations import SaveLevel
from workers.model_host import ModelHost

MIB = 2**20
NO_PACK = "no memory"


class PoolWatch:
    """Means over time, from a look at every plan: what was so then holds until the next one."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host
        self._block_bytes = host.trainer.memory.block_bytes
        self.begin()

    def begin(self) -> None:
        """Forget what was seen."""
        self._seconds = 0.0
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._before = self._counts()
        self._seen, self._seen_s = self._state(), time.perf_counter()

    def look(self) -> None:
        """Count what was seen last for the time until now."""
        now_s = time.perf_counter()
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        self._seconds += passed_s
        for name, value in self._seen.items():
            self._sums[name] += value * passed_s
        self._seen = self._state()

    def figures(self) -> dict[str, object]:
        """Means since the beginning, shares of the jobs' time by save level, and counts."""
        self.look()
        means = {name: total / self._seconds for name, total in self._sums.items()}
        levels = {name: self._sums[name] for name in (*SaveLevel, NO_PACK)}
        job_s = sum(levels.values()) or 1.0
        return means | {
            "level_shares": {name: seconds / job_s for name, seconds in levels.items()},
            **{name: count - self._before[name] for name, count in self._counts().items()},
        }

    def _state(self) -> dict[str, float]:
        pool, trainer = self._host.scheduler.pool, self._host.trainer
        held = pool.num_blocks - pool.num_free - pool.num_lent
        packs = [active.pack for active in trainer.active.values() if active.pack is not None]
        levels = Counter(pack.level.value for pack in packs)
        levels[NO_PACK] = len(trainer.active) - len(packs)
        return {
            "kv_mib": held * self._block_bytes / MIB,
            "training_mib": pool.num_lent * self._block_bytes / MIB,
            "examples_in_flight": sum(len(pack.tokens.bounds) - 1 for pack in packs),
            "running": len(self._host.scheduler.running),
            "waiting": len(self._host.scheduler.waiting),
            **{name: levels[name] for name in (*SaveLevel, NO_PACK)},
        }

    def _counts(self) -> dict[str, int]:
        return {
            "preemptions": self._host.scheduler.num_preemptions,
            "packs_started_over": self._host.trainer.num_recalls,
        }


class WatchedTraining(Training):
    """Training as the scheduler sees it; the pool is looked at once packs have found memory."""

    def __init__(self, training: Training, watch: PoolWatch) -> None:
        self._training = training
        self._watch = watch

    def demands(self, lendable_blocks: int) -> list[TrainDemand]:
        """See Training."""
        found = self._training.demands(lendable_blocks)
        self._watch.look()
        return found

    def give_back(self, num_blocks: int) -> None:
        """See Training."""
        self._training.give_back(num_blocks)

    @property
    def lane_runs(self) -> bool:
        """See Training."""
        return self._training.lane_runs

    def finish_lane(self) -> None:
        """See Training."""
        self._training.finish_lane()
