"""What the registry is told about this worker: gauges and totals, and its newest steps.

The steps are told again and again, so that any gateway can show them, also one that has just begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.domain.messages import WorkerInfo
from scheduler.policy.job_placement import serving_share

if TYPE_CHECKING:
    from scheduler.domain.adapter_tier import AdapterTier
    from scheduler.domain.messages import EngineStats, WorkerCapabilities

MAX_STEP_SAMPLES = 256
MAX_REQUEST_SAMPLES = 200


class Announcement:
    """The engine's latest report, its newest steps, and the requests since the last telling."""

    def __init__(self, worker_id: str, boot_id: str, capabilities: WorkerCapabilities) -> None:
        self._info = WorkerInfo(worker_id=worker_id, boot_id=boot_id, capabilities=capabilities)
        self._stats: EngineStats | None = None

    @property
    def inbox(self) -> str:
        """Stream that this worker reads."""
        return self._info.inbox

    @property
    def serving_share(self) -> float:
        """Share of the engine that requests take, 0 to 1, by its last report."""
        if self._stats is None:
            return 0.0
        return serving_share(self._stats, self._info.capabilities.max_num_sequences)

    def add(self, stats: EngineStats) -> None:
        """Take in a report of the engine."""
        steps, requests = stats.steps, stats.requests
        if self._stats is not None:
            steps, requests = self._stats.steps + steps, self._stats.requests + requests
        self._stats = stats.model_copy(
            update={
                "steps": steps[-MAX_STEP_SAMPLES:],
                "requests": requests[-MAX_REQUEST_SAMPLES:],
            }
        )

    def take(self, disk: AdapterTier) -> WorkerInfo:
        """Return what to announce now; requests are told once."""
        info = self._info.model_copy(update={"stats": self._stats, "disk": disk})
        if self._stats is not None:
            self._stats = self._stats.model_copy(update={"requests": ()})
        return info
