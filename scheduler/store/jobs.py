"""Fine-tuning jobs as their tenant sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.domain.job import FinetuneSpec, JobStatus
from scheduler.store.database import Database
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.job_events import JobCheckpoint, JobEvent
from scheduler.store.page import Page


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


class Jobs:
    """The jobs table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantJobs:
        """The view of one tenant."""
        return TenantJobs(self._db, tenant_id)


class TenantJobs:
    """The jobs of one tenant."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def create(
        self,
        draft: JobDraft,
        *,
        max_active: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> Job:
        """Record a job; its data check is dispatched in the same transaction.

        A repeated idempotency key returns the job that the first create made.

        Raises:
            InvalidInput: a file is not the tenant's (`param` names which).
            QuotaExceeded: the tenant already has `max_active` unfinished jobs.
            IdempotencyMismatch: the key came with another body.
        """
        raise NotImplementedError

    async def get(self, job_id: str) -> Job:
        """Raises NotFound when the tenant has no such job."""
        raise NotImplementedError

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> Page[Job]:
        """One page, newest first, of the jobs that carry all pairs of `metadata`.

        Raises:
            InvalidInput: `after` is not a job of this tenant.
        """
        raise NotImplementedError

    async def cancel(self, job_id: str) -> Job:
        """Cancel at once, or ask the worker of a running job to stop.

        Raises:
            NotFound: the tenant has no such job.
            InvalidTransition: the job is over.
        """
        raise NotImplementedError

    async def pause(self, job_id: str) -> Job:
        """Pause a queued job at once, or ask the worker of a running one to checkpoint and stop.

        Raises:
            NotFound: the tenant has no such job.
            InvalidTransition: the job is neither queued nor running.
        """
        raise NotImplementedError

    async def resume(self, job_id: str) -> Job:
        """Queue a paused job, or take back a pause that the worker has not confirmed yet.

        Raises:
            NotFound: the tenant has no such job.
            InvalidTransition: the job is not paused.
        """
        raise NotImplementedError

    async def events(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> Page[JobEvent]:
        """One page of the job's events, newest first.

        Raises:
            NotFound: the tenant has no such job.
            InvalidInput: `after` is not an event of this job.
        """
        raise NotImplementedError

    async def events_since(
        self, job_id: str, *, since: str | None = None, limit: int = 100
    ) -> list[JobEvent]:
        """Events newer than event `since` (None: all), oldest first, for a live stream.

        Raises:
            NotFound: the tenant has no such job.
            InvalidInput: `since` is not an event of this job.
        """
        raise NotImplementedError

    async def checkpoints(
        self, job_id: str, *, after: str | None = None, limit: int = 10
    ) -> Page[JobCheckpoint]:
        """One page of the job's checkpoints, newest first.

        Raises:
            NotFound: the tenant has no such job.
            InvalidInput: `after` is not a checkpoint of this job.
        """
        raise NotImplementedError

    async def count_active(self) -> int:
        """Jobs of the tenant that are not over (paused ones count)."""
        raise NotImplementedError
