"""What the registry is told about this worker, samples gathered between two announcements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.domain.messages import WorkerInfo

if TYPE_CHECKING:
    from scheduler.domain.messages import EngineStats, WorkerCapabilities

MAX_STEP_SAMPLES = 400
MAX_REQUEST_SAMPLES = 200


class Announcement:
    """Gauges of the engine's latest report, and the samples of all since the last telling."""

    def __init__(self, worker_id: str, boot_id: str, capabilities: WorkerCapabilities) -> None:
        self._info = WorkerInfo(worker_id=worker_id, boot_id=boot_id, capabilities=capabilities)
        self._stats: EngineStats | None = None

    @property
    def inbox(self) -> str:
        """Stream that this worker reads."""
        return self._info.inbox

    def add(self, stats: EngineStats) -> None:
        """Take in a report of the engine."""
        before = self._stats
        if before is not None:
            stats = stats.model_copy(
                update={
                    "steps": (before.steps + stats.steps)[-MAX_STEP_SAMPLES:],
                    "requests": (before.requests + stats.requests)[-MAX_REQUEST_SAMPLES:],
                }
            )
        self._stats = stats

    def take(self) -> WorkerInfo:
        """Return what to announce now; samples are told once."""
        info = self._info.model_copy(update={"stats": self._stats})
        if self._stats is not None:
            self._stats = self._stats.model_copy(update={"steps": (), "requests": ()})
        return info
