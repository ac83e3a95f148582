"""Jobs as a worker's agent sees them: leased, fenced by an epoch, all tenants.

Every write names the epoch of the lease it was made under and matches only a job that still
runs under it. A worker that lost its lease can therefore change nothing: it gets `LostLease`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from scheduler.domain.adapter import AdapterRef
    from scheduler.domain.job import FinetuneSpec
    from scheduler.domain.messages import JobProgress
    from scheduler.store.database import Database

LEASE_S = 30.0
MAX_CRASHES = 3  # without a checkpoint in between; then the job itself is the suspect


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRef:
    """A complete checkpoint to resume from.

    Attributes:
        uri: object-store key of its folder.
        manifest_sha256: digest of the folder's manifest.json.
    """

    step: int
    uri: str
    manifest_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedJob:
    """What a worker needs to run a job it has just claimed.

    Attributes:
        epoch: fencing number of this lease; goes into every later write.
        train_key: object-store key of the encoded training set.
        checkpoint: the newest complete one, None for a fresh start.
        next_version: version that the next commit will publish.
    """

    job_id: str
    tenant_id: str
    tenant_weight: float
    epoch: int
    spec: FinetuneSpec
    adapter_id: str
    model_name: str
    train_key: str
    valid_key: str | None
    checkpoint: CheckpointRef | None
    next_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the tenant wants of a running job."""

    cancel: bool = False
    pause: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCommit:
    """A checkpoint whose files all lie in the object store, ready to be made official.

    Attributes:
        uri: key of the training state's folder; None when it is not kept (a final one).
        adapter_uri: key of the adapter artefact's folder. Put the epoch into it, so that a
            zombie's upload never touches files that another lease committed.
        adapter_digest: content digest of the artefact.
        num_bytes: size of the artefact.
        trained_tokens: so far.
    """

    step: int
    adapter_uri: str
    adapter_digest: str
    num_bytes: int
    trained_tokens: int
    uri: str | None = None
    manifest_sha256: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Leases:
    """Claims and fenced writes for worker agents."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def claimable(self, base_models: Collection[str], limit: int = 16) -> list[str]:
        """Ids of queued jobs on these base models: highest priority first, then oldest."""
        raise NotImplementedError

    async def claim(
        self, job_id: str, worker_id: str, lease_s: float = LEASE_S
    ) -> LeasedJob | None:
        """Take a queued job; None when another worker was faster or it is not wanted any more."""
        raise NotImplementedError

    async def renew(self, job_id: str, epoch: int, lease_s: float = LEASE_S) -> Wanted:
        """Extend the lease and learn what the tenant wants. Raises LostLease."""
        raise NotImplementedError

    async def record_progress(self, *reports: JobProgress) -> None:
        """Record optimizer steps of one job and lease, in one transaction; each at most once.

        A step that is run again (after a resume) leaves its first event; when its loss differs,
        a warning event tells so.

        Raises:
            LostLease: another worker owns the job now.
        """
        raise NotImplementedError

    async def commit_checkpoint(
        self, job_id: str, epoch: int, commit: CheckpointCommit
    ) -> AdapterRef:
        """Make a checkpoint official: resumable, and callable under its `ckpt-step-N` name.

        Raises:
            LostLease: another worker owns the job now.
        """
        raise NotImplementedError

    async def prune_checkpoints(self, job_id: str, epoch: int, keep: int = 2) -> list[str]:
        """Forget all but the newest `keep` training states; returns the keys to delete.

        The adapters of the older checkpoints stay callable.

        Raises:
            LostLease: another worker owns the job now.
        """
        raise NotImplementedError

    async def finish(self, job_id: str, epoch: int, commit: CheckpointCommit) -> AdapterRef:
        """Publish: the adapter answers to its plain name and the job has succeeded, as one.

        Raises:
            LostLease: another worker owns the job now.
        """
        raise NotImplementedError

    async def fail(
        self, job_id: str, epoch: int, code: str, message: str, param: str | None = None
    ) -> None:
        """End the job with an error the tenant can read. Raises LostLease."""
        raise NotImplementedError

    async def confirm_cancel(self, job_id: str, epoch: int) -> None:
        """The worker has stopped as the tenant wanted: cancelled. Raises LostLease."""
        raise NotImplementedError

    async def confirm_pause(self, job_id: str, epoch: int) -> None:
        """The worker has checkpointed and stopped: paused. Raises LostLease."""
        raise NotImplementedError

    async def release(self, job_id: str, epoch: int, *, crashed: bool = False) -> None:
        """Give the job back to the queue (drain, or with `crashed` after an engine's death).

        A job whose cancellation or pause was wanted gets that instead; one that crashed
        MAX_CRASHES times without a new checkpoint fails.

        Raises:
            LostLease: another worker owns the job now.
        """
        raise NotImplementedError

    async def reap(self) -> list[str]:
        """Treat every expired lease as a crash of its worker; returns the jobs concerned."""
        raise NotImplementedError
