"""Idempotency keys: a repeated create returns what the first one made."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

from scheduler.store.database import Database


@dataclass(frozen=True, slots=True, kw_only=True)
class IdempotencyKey:
    """The caller's `Idempotency-Key` and a digest of the body it came with.

    Pass it to `TenantFiles.create` or `TenantJobs.create`: the key is stored in the transaction
    that creates the thing, so of two racing creates one makes it and the other returns it.
    """

    key: str
    body_hash: str


class Idempotency:
    """Looks up earlier creates before any work is done."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def replay(self, tenant_id: str, idempotency: IdempotencyKey) -> str | None:
        """Id of what this key created within the last 24 h, or None.

        Raises:
            IdempotencyMismatch: the key came with another body.
        """
        raise NotImplementedError

    async def purge(self) -> int:
        """Forget keys older than 24 h; returns how many."""
        raise NotImplementedError


async def remember(
    conn: AsyncConnection, tenant_id: str, idempotency: IdempotencyKey, resource_id: str
) -> str:
    """Claim the key for `resource_id` in the caller's transaction; returns the id that owns it.

    The result differs from `resource_id` when an earlier create holds the key: return that one.

    Raises:
        IdempotencyMismatch: the key came with another body.
    """
    raise NotImplementedError
