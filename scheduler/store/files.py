"""Uploaded and generated files: the rows; their bytes lie in the object store."""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.store.database import Database
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.page import Order, Page


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a tenant.

    Attributes:
        id: `file-...`.
        num_bytes: size of its content.
        object_key: where the bytes lie in the object store.
        status: OpenAI's `uploaded`, `processed` or `error`.
        created_at: unix seconds.
    """

    id: str
    tenant_id: str
    filename: str
    purpose: str
    num_bytes: int
    object_key: str
    status: str
    created_at: int
    expires_at: int | None = None


def new_file_id() -> str:
    """A fresh `file-...` id; the bytes are stored under it before the row is made."""
    raise NotImplementedError


def file_object_key(tenant_id: str, file_id: str) -> str:
    """Object-store key of a file's bytes."""
    return f"files/{tenant_id}/{file_id}"


class Files:
    """The files table; routes see only a tenant's view of it."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def for_tenant(self, tenant_id: str) -> TenantFiles:
        """The view of one tenant."""
        return TenantFiles(self._db, tenant_id)


class TenantFiles:
    """The files of one tenant."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self._db = db
        self._tenant_id = tenant_id

    async def create(
        self,
        *,
        file_id: str,
        filename: str,
        purpose: str,
        num_bytes: int,
        object_key: str,
        max_total_bytes: int | None = None,
        idempotency: IdempotencyKey | None = None,
    ) -> File:
        """Record a file whose bytes are already stored.

        With a repeated idempotency key the earlier file comes back (its id is not `file_id`):
        the caller then deletes the bytes that it has just stored.

        Raises:
            QuotaExceeded: the tenant would hold more than `max_total_bytes`.
            IdempotencyMismatch: the key came with another body.
        """
        raise NotImplementedError

    async def get(self, file_id: str) -> File:
        """Raises NotFound when the tenant has no such file."""
        raise NotImplementedError

    async def list(
        self,
        *,
        after: str | None = None,
        limit: int = 20,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> Page[File]:
        """One page, newest first unless `order` is asc.

        Raises:
            InvalidInput: `after` is not a file of this tenant.
        """
        raise NotImplementedError

    async def delete(self, file_id: str) -> File:
        """Remove the row and return it, so that the caller removes the bytes.

        Raises:
            NotFound: the tenant has no such file.
            Conflict: a job that has not read it yet still needs it.
        """
        raise NotImplementedError

    async def total_bytes(self) -> int:
        """Bytes of all files of the tenant."""
        raise NotImplementedError
