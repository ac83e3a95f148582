"""Evaluations as values, read from rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scheduler.domain.evaluation import EvaluationPlan, EvaluationReport
from scheduler.domain.work_status import WorkStatus
from scheduler.store.leased_work import Claim

if TYPE_CHECKING:
    from sqlalchemy import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation.

    Attributes:
        version: the version of `adapter_id` that is the candidate.
        job_id: the job that had it evaluated at its end; None where a caller did.
        report: set once it has succeeded.
    """

    id: str
    status: WorkStatus
    adapter_id: str
    version: int
    job_id: str | None
    plan: EvaluationPlan
    report: EvaluationReport | None
    error_message: str | None
    created_at: int
    finished_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationWork:
    """What whoever carries it out needs; `claim` is the fence of all it writes."""

    claim: Claim
    tenant_id: str
    adapter_id: str
    version: int
    job_id: str | None
    plan: EvaluationPlan


def evaluation_of(row: Row[Any]) -> Evaluation:
    """The evaluation of a row."""
    return Evaluation(
        id=row.id,
        status=WorkStatus(row.status),
        adapter_id=row.adapter_id,
        version=row.version,
        job_id=row.job_id,
        plan=EvaluationPlan.model_validate(row.plan),
        report=None if row.report is None else EvaluationReport.model_validate(row.report),
        error_message=row.error_message,
        created_at=int(row.created_at),
        finished_at=None if row.finished_at is None else int(row.finished_at),
    )


def work_of(row: Row[Any]) -> EvaluationWork:
    """The work of a row that was just claimed."""
    return EvaluationWork(
        claim=Claim(row.id, row.num_tries),
        tenant_id=row.tenant_id,
        adapter_id=row.adapter_id,
        version=row.version,
        job_id=row.job_id,
        plan=EvaluationPlan.model_validate(row.plan),
    )
