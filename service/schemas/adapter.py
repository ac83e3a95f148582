"""/v1/adapters."""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import Field

from scheduler.domain.adapter_tier import Tier
from service.schemas.base import Body, Read

MAX_VERSION = 2**31 - 1
Origin = Literal["job", "import", "compress", "merge"]
VersionPath = Annotated[int, Path(ge=1, le=MAX_VERSION)]


class AdapterVersionRead(Read):
    """One immutable version, and where it comes from."""

    version: int
    model: str = Field(description="A name that means this version and never another.")
    step: int
    digest: str = Field(description="Of its content; equal content has an equal digest.")
    bytes: int
    created_at: int
    origin: Origin | None = None
    base_digest: str | None = Field(None, description="Digest of the base weights it belongs to.")
    method: str | None = None
    job_id: str | None = None
    data_digests: dict[str, str] = Field(
        default_factory=dict, description="SHA-256 of the training files, by role."
    )
    metrics: dict[str, float] = Field(default_factory=dict)
    parent_version: int | None = Field(None, description="The version that it was made of.")
    recipe: dict[str, Any] | None = Field(
        None, description="How it was compressed or merged, and what that did to its quality."
    )


class AdapterRead(Read):
    """An adapter, its versions and what points at them."""

    id: str
    object: Literal["adapter"] = "adapter"
    created_at: int
    model: str
    base_model: str
    job_id: str | None
    final_version: int | None = Field(description="What its job, or its import, published.")
    live_version: int | None = Field(description="What was promoted; null before the first time.")
    tags: dict[str, int]
    pinned: bool
    shared_by: str | None = Field(description="Its owner, when it is another tenant's.")
    shared_with: list[str] = Field(description="Tenants that may call it; empty for borrowers.")
    versions: list[AdapterVersionRead]


class ResidencyRead(Read):
    """A version on a worker, in the nearest tier to the device that holds it."""

    worker: str
    version: int
    tier: Tier


class AdapterDetail(AdapterRead):
    """An adapter, and where it lies at the moment."""

    residency: list[ResidencyRead] = Field(
        description="Seconds old; empty for borrowers, and beyond a worker's 1024 newest of a tier."
    )


class VersionChoice(Body):
    """Names a version of the adapter in the path."""

    version: int = Field(ge=1, le=MAX_VERSION)


class ShareCreate(Body):
    """Names a borrower."""

    tenant_id: str = Field(
        min_length=1, max_length=64, description="The borrower's organization id (org-...)."
    )


class MergeRead(Read):
    """A full model made of the base and one version; `export?format=merged` fetches it."""

    object: Literal["adapter.merge"] = "adapter.merge"
    adapter_id: str
    version: int
    status: Literal["queued", "running", "succeeded", "failed"]
    created_at: int
    finished_at: int | None
    bytes: int | None = Field(description="Of all its files, once it has succeeded.")
    error: str | None
