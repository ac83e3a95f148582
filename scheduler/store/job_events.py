"""What happened to a job, newest first, and the checkpoints it left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

EventLevel = Literal["info", "warn", "error"]
EventType = Literal["message", "metrics"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """One entry of a job's log.

    Attributes:
        id: `ft-event-...`.
        created_at: unix seconds.
        data: numbers of a `metrics` event.
    """

    id: str
    job_id: str
    created_at: int
    level: EventLevel
    type: EventType
    message: str
    data: dict[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCheckpoint:
    """A committed checkpoint, callable as a model.

    Attributes:
        id: `ftckpt_...`.
        model_name: `ft:...:ckpt-step-N`.
        created_at: unix seconds.
    """

    id: str
    job_id: str
    step: int
    model_name: str
    created_at: int
    metrics: dict[str, float] = field(default_factory=dict)
