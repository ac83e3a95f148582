"""Adapters as their tenant calls them: names to immutable versions."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.domain.adapter import AdapterRef
from scheduler.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedAdapter:
    """A model name taken apart.

    Attributes:
        name: the name that was asked for.
        base_model: the model under the adapter.
        ref: the version that answers to the name now.
    """

    name: str
    base_model: str
    ref: AdapterRef


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """An adapter with at least one version.

    Attributes:
        model_name: the plain name, callable once `final_version` is set.
        versions: newest last; `version.name` is its `ckpt-step-N` name.
        created_at: unix seconds.
    """

    id: str
    job_id: str
    base_model: str
    model_name: str
    created_at: int
    final_version: int | None
    versions: tuple[AdapterVersion, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterVersion:
    """One immutable version."""

    version: int
    name: str
    step: int
    digest: str
    uri: str
    num_bytes: int
    created_at: int


class Adapters:
    """The adapters table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantAdapters:
        """The view of one tenant."""
        return TenantAdapters(self._db, tenant_id)


class TenantAdapters:
    """The adapters of one tenant."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def list(self) -> list[Adapter]:
        """All adapters with at least one version, oldest first, running jobs' too."""
        raise NotImplementedError

    async def get(self, adapter_id: str) -> Adapter:
        """Raises NotFound when the tenant has no such adapter."""
        raise NotImplementedError

    async def resolve(self, model_name: str) -> ResolvedAdapter:
        """The version behind a plain name, a `:ckpt-step-N` name or a `:live` name.

        Raises:
            ModelNotFound: unknown, foreign or not published; one text for all.
        """
        raise NotImplementedError

    async def delete(self, model_name: str) -> Adapter:
        """Remove the adapter with all its versions; the caller then removes `adapters/ID`.

        Raises:
            ModelNotFound: the tenant has no such published adapter.
            Conflict: its job still runs.
        """
        raise NotImplementedError
