"""Jobs and their curves as answers."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from service.schemas.base import ListPage
from service.schemas.fine_tuning import CurvePointRead, JobErrorRead, JobRead

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.store.job_curve import CurvePoint
    from scheduler.store.jobs import Job


def read_job(job: Job) -> JobRead:
    """A job as its tenant sees it."""
    error = job.error
    return JobRead(
        id=job.id,
        created_at=job.created_at,
        error=error and JobErrorRead(code=error.code, message=error.message, param=error.param),
        estimated_finish=job.estimated_finish,
        fine_tuned_model=job.fine_tuned_model,
        finished_at=job.finished_at,
        hyperparameters=job.hyperparameters,
        metadata=job.metadata,
        method=job.method,
        model=job.model,
        organization_id=job.tenant_id,
        result_files=list(job.result_files),
        seed=job.seed,
        status=job.status,
        suffix=job.suffix or None,
        trained_tokens=job.trained_tokens,
        training_file=job.training_file,
        validation_file=job.validation_file,
        adapter_id=job.adapter_id,
    )


def read_curve(points: Sequence[CurvePoint]) -> ListPage[CurvePointRead]:
    """The points of a curve, oldest first."""
    return ListPage(data=[CurvePointRead(**asdict(point)) for point in points])
