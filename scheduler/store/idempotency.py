"""Idempotency keys: a repeated create returns what the first one made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, delete, select

from scheduler.domain.errors import IdempotencyMismatch
from scheduler.store.clock import DbNow
from scheduler.store.tables import idempotency_keys
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.store.database import Database

REMEMBERED_S = 24 * 3600


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
        query = select(idempotency_keys).where(
            idempotency_keys.c.tenant_id == tenant_id,
            idempotency_keys.c.key == idempotency.key,
            idempotency_keys.c.created_at > DbNow() - REMEMBERED_S,
        )
        async with self._db.read() as conn:
            row = (await conn.execute(query)).one_or_none()
        return None if row is None else _owner(row, idempotency)

    async def purge(self) -> int:
        """Forget keys older than 24 h; returns how many."""
        async with self._db.begin() as conn:
            result = await conn.execute(
                delete(idempotency_keys).where(
                    idempotency_keys.c.created_at <= DbNow() - REMEMBERED_S
                )
            )
        return result.rowcount


async def remember(
    conn: AsyncConnection, tenant_id: str, idempotency: IdempotencyKey, resource_id: str
) -> str:
    """Claim the key for `resource_id` in the caller's transaction; returns the id that owns it.

    The result differs from `resource_id` when an earlier create holds the key: return that one.

    Raises:
        IdempotencyMismatch: the key came with another body.
    """
    mine = {
        "body_hash": idempotency.body_hash,
        "resource_id": resource_id,
        "created_at": DbNow(),
    }
    statement = upsert(conn, idempotency_keys).values(
        tenant_id=tenant_id, key=idempotency.key, **mine
    )
    claimed = await conn.execute(
        statement.on_conflict_do_update(
            index_elements=["tenant_id", "key"],
            set_=mine,
            where=idempotency_keys.c.created_at <= DbNow() - REMEMBERED_S,
        )
    )
    if claimed.rowcount == 1:
        return resource_id
    query = select(idempotency_keys).where(
        idempotency_keys.c.tenant_id == tenant_id, idempotency_keys.c.key == idempotency.key
    )
    return _owner((await conn.execute(query)).one(), idempotency)


def _owner(row: Row[Any], idempotency: IdempotencyKey) -> str:
    if row.body_hash != idempotency.body_hash:
        raise IdempotencyMismatch(
            "This Idempotency-Key came before with another body; use a new key for a new request."
        )
    owner: str = row.resource_id
    return owner
