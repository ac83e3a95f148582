"""How long work took, each unit of a training lane above all: on the host's clock or by events.

A CUDA call returns before its work is done. Events between units are read once they have passed;
the host runs at most MAX_QUEUED units ahead, so that the lane can still yield to who comes new.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch

from scheduler.policy.pack_cursor import Unit

MAX_QUEUED = 2

TimedUnit = tuple[Unit, float]  # and its milliseconds


class UnitClock(Protocol):
    """Times units that run one after the other."""

    def start(self) -> None:
        """Note when the first unit begins."""

    def lap(self, unit: Unit) -> list[TimedUnit]:
        """A unit has been issued: those that have ended since the last call."""

    def finish(self) -> list[TimedUnit]:
        """Wait for the rest."""


class HostClock:
    """For devices whose calls return when the work is done."""

    def __init__(self) -> None:
        self._began_s = 0.0

    def start(self) -> None:
        """See UnitClock."""
        self._began_s = time.perf_counter()

    def lap(self, unit: Unit) -> list[TimedUnit]:
        """See UnitClock."""
        began_s, self._began_s = self._began_s, time.perf_counter()
        return [(unit, (self._began_s - began_s) * 1e3)]

    def finish(self) -> list[TimedUnit]:
        """See UnitClock."""
        return []


class EventClock:
    """For CUDA: an event after each unit, on the current stream."""

    def __init__(self) -> None:
        self._last = torch.cuda.Event(enable_timing=True)
        self._queued: deque[tuple[Unit, torch.cuda.Event, torch.cuda.Event]] = deque()

    def start(self) -> None:
        """See UnitClock."""
        self._last = _recorded()

    def lap(self, unit: Unit) -> list[TimedUnit]:
        """See UnitClock."""
        began, self._last = self._last, _recorded()
        self._queued.append((unit, began, self._last))
        ended = []
        while len(self._queued) > MAX_QUEUED:
            ended.append(self._oldest())
        return ended

    def finish(self) -> list[TimedUnit]:
        """See UnitClock."""
        return [self._oldest() for _ in range(len(self._queued))]

    def _oldest(self) -> TimedUnit:
        unit, began, done = self._queued.popleft()
        return unit, _ms_between(began, done)


def elapsed_ms(device: torch.device, work: Callable[[], None]) -> float:
    """What a piece of work takes on its device."""
    if device.type != "cuda":
        began_s = time.perf_counter()
        work()
        return (time.perf_counter() - began_s) * 1e3
    began = _recorded()
    work()
    done = _recorded()
    return _ms_between(began, done)


def _recorded() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _ms_between(began: torch.cuda.Event, done: torch.cuda.Event) -> float:
    """Waits until the later one has passed."""
    done.synchronize()
    return float(began.elapsed_time(done))
