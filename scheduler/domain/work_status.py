"""How far a piece of work is that lies in a table until somebody carries it out."""

from __future__ import annotations

from enum import StrEnum


class WorkStatus(StrEnum):
    """Its states; the last two are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


OPEN = (WorkStatus.QUEUED, WorkStatus.RUNNING)
