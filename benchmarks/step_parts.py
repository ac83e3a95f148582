"""What the engine itself costs in a step: everything but tensor work and the callers.

Timers around the parts of a turn of the engine; each counts its own time, without that of timed
parts inside it. Counted as engine: taking orders, `schedule`, laying the batch out (its small
tensors included), `commit`, `emit`, what the latency law learns, the meter, and whatever lies
between. Not counted: the packed forward, logits and sampling (torch and native kernels, with the
Python that calls them layer by layer), cleared pages, the training lane, and the benchmark's own
callers at the far end of the pipe.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Any

from benchmarks.closed_loop import Bench
from benchmarks.spread import median, percentiles
from workers.batch_builder import BatchBuilder

REST = "rest of the turn"
KERNELS = "kernels"
CALLERS = "callers"


class StepParts:
    """Times the parts of every turn while it is entered."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.turns: list[dict[str, float]] = []
        self._now: dict[str, float] = defaultdict(float)
        self._inner_s: list[float] = [0.0]  # time of timed parts inside each open part
        self._undo: list[tuple[object, str, Any]] = []

    def __enter__(self) -> StepParts:
        for owner, name, part in self._places():
            self._wrap(owner, name, part)
        self._wrap(self.bench.engine, "turn", REST, is_turn=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for owner, name, original in self._undo:
            if isinstance(owner, type):
                setattr(owner, name, original)
            else:
                delattr(owner, name)

    def figures(self) -> dict[str, object]:
        """Engine time of a turn in milliseconds, by part as medians, and kernel time beside it."""
        parts = sorted({part for turn in self.turns for part in turn} - {KERNELS, CALLERS})
        overhead = [sum(turn[part] for part in parts if part in turn) for turn in self.turns]
        return {
            "overhead_ms": percentiles(overhead),
            "parts_ms": {p: median([turn.get(p, 0.0) for turn in self.turns]) for p in parts},
            "kernels_ms": median([turn.get(KERNELS, 0.0) for turn in self.turns]),
        }

    def _places(self) -> list[tuple[object, str, str]]:
        engine, host = self.bench.engine, self.bench.host
        return [
            (self.bench.connection, "poll", CALLERS),
            (self.bench.connection, "send", CALLERS),
            (host.scheduler, "schedule", "schedule"),
            (host.scheduler, "commit", "commit"),
            (host.scheduler, "observe_forward", "observe"),
            (engine.requests, "admit", "admit"),
            (engine.requests, "emit", "emit"),
            (engine.meter, "count_step", "meter"),
            (BatchBuilder, "add_row", "batch"),
            (BatchBuilder, "build", "batch"),
            (host.runner.cache, "clear", KERNELS),
            (host.runner.decoder, "forward", KERNELS),
            (host.runner.decoder, "logits", KERNELS),
            (host.runner.sampler, "sample", KERNELS),
            (engine.jobs, "run_lane", KERNELS),
            (engine.jobs, "advance", KERNELS),
        ]

    def _wrap(self, owner: object, name: str, part: str, *, is_turn: bool = False) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner_s.append(0.0)
            began_s = time.perf_counter()
            result = original(*args, **kwargs)
            took_s = time.perf_counter() - began_s
            self._now[part] += (took_s - self._inner_s.pop()) * 1e3
            self._inner_s[-1] += took_s
            if is_turn:
                self.turns.append(dict(self._now))
                self._now.clear()
            return result

        self._undo.append((owner, name, original))
        setattr(owner, name, timed)
