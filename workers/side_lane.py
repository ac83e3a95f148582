"""Units of training that a thread beside the engine's own gives to a share of the device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

from scheduler.domain.plan import LaneUnits
from workers.lane_device import LaneDevice
from workers.unit_clock import TimedUnit

EndedLane = tuple[LaneUnits, Future[list[TimedUnit]]]


class SideLane:
    """Runs lanes one after the other; what a job owns must not change while one of its runs.

    Attributes:
        device: what the lanes share with the steps beside them.
    """

    def __init__(self, device: LaneDevice) -> None:
        self.device = device
        self._thread = ThreadPoolExecutor(1, "side-lane", device.enter_thread)
        self._lanes: list[EndedLane] = []
        self._is_ending = False

    @property
    def is_running(self) -> bool:
        """Whether a lane has not ended."""
        return any(not future.done() for _, future in self._lanes)

    def runs(self, job_id: str) -> bool:
        """Whether a lane of the job has not ended."""
        return any(lane.job_id == job_id and not future.done() for lane, future in self._lanes)

    def begin(self, lane: LaneUnits, run: Callable[[], list[TimedUnit]]) -> None:
        """Run a lane after those that have begun; it has ended once the device is done with it."""
        self.device.begin()
        self._lanes.append((lane, self._thread.submit(self.device.run, run)))

    def may_go_on(self) -> bool:
        """Whether the lanes may begin another unit."""
        return not self._is_ending

    def finish(self) -> None:
        """Let all lanes end with their unit in work, and wait for them."""
        self._is_ending = True
        wait([future for _, future in self._lanes])
        self._is_ending = False

    def take_ended(self) -> list[EndedLane]:
        """Lanes that have ended since the last call, in order; a future may hold an error."""
        ended = [lane for lane in self._lanes if lane[1].done()]
        self._lanes = [lane for lane in self._lanes if lane not in ended]
        return ended

    def has_failed(self, job_id: str) -> bool:
        """Whether a lane of the job, not taken yet, has ended in an error."""
        return any(
            future.done() and future.exception() is not None
            for lane, future in self._lanes
            if lane.job_id == job_id
        )

    def discard(self, job_id: str) -> None:
        """End all lanes, and forget how a job's have ended."""
        self.finish()
        self._lanes = [lane for lane in self._lanes if lane[0].job_id != job_id]
