"""How units of training share a device with the steps of its engine.

On a CPU a lane and the steps beside it have each a part of the threads. On CUDA all units, beside a
step or in turn, go to one stream of the lowest priority, and the steps to one of a higher:

    engine's stream    | pages, packs, optimizer |  decode step  |  decode step  |
    training's stream                    waits ->|  unit  |  unit  |  unit  |-> the lane has ended

So what units allocate is used and freed in the order of one stream, whichever thread gave them; and
what a lane reads may change once the host knows of its end, for the device is then done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, TypeVar

import torch

from workers.unit_clock import EventClock, HostClock, UnitClock

STEP_PRIORITY, LANE_PRIORITY = -1, 0  # lower goes first, and 0 is the lowest there is
ResultT = TypeVar("ResultT")


class LaneDevice(Protocol):
    """What one trainer's lanes run on.

    Attributes:
        can_share: whether anything is left for steps beside a lane.
        share_idles: whether nobody has a lane's share from its end to that of the step beside it.
        step_threads: CPU threads that a step beside a lane has.
    """

    can_share: bool
    share_idles: bool
    step_threads: int

    def begin(self) -> None:
        """Let lanes that run from now on find all that the calling thread has told the device."""

    def enter_thread(self) -> None:
        """Set up the thread that lanes run on."""

    def run(self, lane: Callable[[], ResultT]) -> ResultT:
        """Run a lane on its thread; returns, or raises, once the device is done with it."""

    def clock(self) -> UnitClock:
        """What times units, of a lane or in turn."""

    def turn(self) -> AbstractContextManager[None]:
        """Units within run in turn with the calling thread's other work."""

    def step(self, *, is_beside: bool) -> AbstractContextManager[None]:
        """A packed forward within has what a lane leaves it."""


class ThreadLane:
    """A CPU: one half of the threads for lanes, the other for the steps beside them."""

    share_idles = True

    def __init__(self) -> None:
        num_threads = torch.get_num_threads()
        self.can_share = num_threads > 1
        self.lane_threads = max(1, num_threads // 2)
        self.step_threads = max(1, num_threads - num_threads // 2)

    def begin(self) -> None:
        """See LaneDevice."""

    def enter_thread(self) -> None:
        """See LaneDevice."""
        torch.set_num_threads(self.lane_threads)

    def run(self, lane: Callable[[], ResultT]) -> ResultT:
        """See LaneDevice."""
        return lane()

    def clock(self) -> UnitClock:
        """See LaneDevice."""
        return HostClock()

    def turn(self) -> AbstractContextManager[None]:
        """See LaneDevice."""
        return nullcontext()

    def step(self, *, is_beside: bool) -> AbstractContextManager[None]:
        """See LaneDevice."""
        return cpu_threads(self.step_threads) if is_beside else nullcontext()


class StreamLane:
    """CUDA: a stream of the lowest priority."""

    can_share, share_idles = True, False

    def __init__(self, device: torch.device) -> None:
        self.step_threads = torch.get_num_threads()
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=LANE_PRIORITY)

    def begin(self) -> None:
        """See LaneDevice."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def enter_thread(self) -> None:
        """See LaneDevice."""

    def run(self, lane: Callable[[], ResultT]) -> ResultT:
        """See LaneDevice."""
        with torch.cuda.stream(self._stream):
            try:
                return lane()
            finally:
                self._stream.synchronize()

    def clock(self) -> UnitClock:
        """See LaneDevice."""
        return EventClock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See LaneDevice."""
        self.begin()
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def step(self, *, is_beside: bool) -> AbstractContextManager[None]:
        """See LaneDevice."""
        del is_beside
        return nullcontext()


def lane_device(device: torch.device) -> LaneDevice:
    """What lanes run on, as the calling thread is set up now."""
    return StreamLane(device) if device.type == "cuda" else ThreadLane()


def serve_before_lanes(device: torch.device) -> None:
    """Give the calling thread's work on CUDA, from now on, a stream that lanes yield to."""
    if device.type == "cuda":
        torch.cuda.set_stream(step_stream(device))


def step_stream(device: torch.device) -> torch.cuda.Stream:
    """A new stream of a higher priority than lanes have."""
    return torch.cuda.Stream(device, priority=STEP_PRIORITY)


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Give the calling thread's kernels `count` CPU threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
