"""Evaluations as answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.schemas.evaluation import EvaluationRead

if TYPE_CHECKING:
    from scheduler.store.evaluations import Evaluation


def read_evaluation(evaluation: Evaluation) -> EvaluationRead:
    """An evaluation as its tenant sees it."""
    plan, report = evaluation.plan, evaluation.report
    return EvaluationRead(
        id=evaluation.id,
        status=evaluation.status.value,
        adapter_id=evaluation.adapter_id,
        version=evaluation.version,
        job_id=evaluation.job_id,
        file=plan.file,
        graders=list(plan.graders),
        promote_if=list(plan.rules),
        num_rows=report.num_rows if report else None,
        contenders=report.contenders if report else None,
        promoted=report.promoted if report else None,
        reasons=list(report.reasons) if report else [],
        created_at=evaluation.created_at,
        finished_at=evaluation.finished_at,
        error=evaluation.error_message,
    )
