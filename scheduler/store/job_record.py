"""A job's row as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scheduler.domain.job import FinetuneSpec, JobStatus

if TYPE_CHECKING:
    from sqlalchemy import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDraft:
    """What is known of a job before it exists.

    Attributes:
        spec: every `auto` resolved; `spec.base_model` is the job's model.
        training_file: id of a file of the same tenant.
        hyperparameters: as shown in the job object, resolved.
        method: OpenAI's `method` object as shown, resolved.
    """

    spec: FinetuneSpec
    training_file: str
    validation_file: str | None = None
    suffix: str = ""
    hyperparameters: dict[str, object] = field(default_factory=dict)
    method: dict[str, object] | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where a job stands; all that OpenAI's job object shows.

    Attributes:
        id: `ftjob-...`.
        tenant_id: `org-...`, OpenAI's organization_id.
        model_name: name of the adapter, fixed at creation.
        created_at: unix seconds, like all `*_at` and `estimated_finish`.
        trained_tokens: so far, or in all when finished.
        cancel_requested: a running job was asked to stop; its worker has not confirmed yet.
    """

    id: str
    tenant_id: str
    status: JobStatus
    spec: FinetuneSpec
    training_file: str
    validation_file: str | None
    suffix: str
    adapter_id: str
    model_name: str
    hyperparameters: dict[str, object]
    method: dict[str, object] | None
    metadata: dict[str, str]
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    trained_tokens: int
    result_files: tuple[str, ...]
    error: JobError | None
    cancel_requested: bool
    pause_requested: bool

    @property
    def model(self) -> str:
        """The base model that is fine-tuned."""
        return self.spec.base_model

    @property
    def seed(self) -> int:
        """Seed of the data order and all randomness."""
        return self.spec.seed

    @property
    def fine_tuned_model(self) -> str | None:
        """The adapter's name once the job has succeeded."""
        return self.model_name if self.status is JobStatus.SUCCEEDED else None


def job_of(row: Row[Any]) -> Job:
    """The job that a row of `jobs` describes."""
    error = None
    if row.error_code is not None:
        error = JobError(code=row.error_code, message=row.error_message, param=row.error_param)
    return Job(
        id=row.id,
        tenant_id=row.tenant_id,
        status=JobStatus(row.status),
        spec=FinetuneSpec.model_validate(row.spec),
        training_file=row.training_file,
        validation_file=row.validation_file,
        suffix=row.suffix,
        adapter_id=row.adapter_id,
        model_name=row.model_name,
        hyperparameters=row.hyperparameters,
        method=row.method,
        metadata=row._mapping["metadata"],
        created_at=int(row.created_at),
        finished_at=_seconds(row.finished_at),
        estimated_finish=_seconds(row.estimated_finish),
        trained_tokens=row.trained_tokens,
        result_files=tuple(row.result_files),
        error=error,
        cancel_requested=row.cancel_requested,
        pause_requested=row.pause_requested,
    )


def _seconds(time: float | None) -> int | None:
    return None if time is None else int(time)
