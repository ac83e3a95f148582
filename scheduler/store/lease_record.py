"""What passes between the leases table and a worker's agent, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.domain.job import FinetuneSpec


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
        base_digest: digest of the base weights under the adapter, as its manifest has it.
    """

    step: int
    adapter_uri: str
    adapter_digest: str
    num_bytes: int
    trained_tokens: int
    uri: str | None = None
    manifest_sha256: str | None = None
    base_digest: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
