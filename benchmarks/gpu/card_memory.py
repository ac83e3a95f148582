"""Memory of a device: the most that a piece of work takes, and work that does not fit."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.allocation import peak_rise_bytes
from benchmarks.gpu.setting import Figures, Setting

TOLERANCE = 0.05  # how far below the true bound the longest length may be, as a share


def peak_bytes(setting: Setting, work: Callable[[], None]) -> int | None:
    """The most that the work allocates at a time; None: more than there is."""
    release(setting)
    if setting.device.type != "cuda":
        return peak_rise_bytes(work)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    fits = is_within_memory(setting, work)
    return torch.cuda.max_memory_allocated() - before if fits else None


def is_within_memory(setting: Setting, work: Callable[[], None]) -> bool:
    """Whether the device has the memory that the work asks for."""
    try:
        work()
        setting.synchronize()
    except torch.OutOfMemoryError:
        fits = False
    else:
        fits = True
    release(setting)
    return fits


def release(setting: Setting) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True, slots=True)
class Search:
    """For the longest length that fits: doubled until one does not, then halved.

    Attributes:
        grain: lengths are multiples of it.
        start: the first one that is tried.
        most: none above it is tried.
        seconds: after which no other is tried.
    """

    grain: int
    start: int
    most: int
    seconds: float

    def run(self, fits: Callable[[int], bool]) -> Figures:
        """The longest that fits, and by what the search ended: `bad` did not fit, or nothing."""
        until_s = time.perf_counter() + self.seconds
        good, bad, tried = 0, None, self.start
        while good < tried <= self.most and time.perf_counter() < until_s:
            if fits(tried):
                good = tried
            else:
                bad = tried
            tried = self._next(good, bad)
        return {"tokens": good, "too_many": bad}

    def _next(self, good: int, bad: int | None) -> int:
        """What to try next; `good` itself when that is near enough."""
        if bad is None:
            return 2 * good
        if bad - good <= max(self.grain, TOLERANCE * bad):
            return good
        return (good + bad) // 2 // self.grain * self.grain
