"""Who else may call an adapter. A share gives reading and use, never change.

All functions work in the transaction of a caller that holds the adapter's row locked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Row, delete, func, select

from scheduler.domain.errors import InvalidInput, NotFound
from scheduler.store.clock import DbNow
from scheduler.store.tables import adapter_shares, adapters, tenants
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_SHARES = 256  # of one adapter


def is_shared_with(tenant_id: str) -> ColumnElement[bool]:
    """Whether a row of `adapters` is shared with the tenant."""
    return (
        select(adapter_shares.c.adapter_id)
        .where(adapter_shares.c.adapter_id == adapters.c.id)
        .where(adapter_shares.c.tenant_id == tenant_id)
        .exists()
    )


async def count_shares(conn: AsyncConnection, adapter_id: str) -> int:
    """How many tenants borrow the adapter."""
    query = select(func.count()).where(adapter_shares.c.adapter_id == adapter_id)
    return int(await conn.scalar(query) or 0)


async def share(conn: AsyncConnection, adapter: Row[Any], borrower_id: str) -> None:
    """Let the tenant call the adapter; repeating it changes nothing.

    Raises:
        InvalidInput: it is the owner itself, or there are too many.
        NotFound: no such tenant.
    """
    if borrower_id == adapter.tenant_id:
        raise InvalidInput("The adapter is yours; name another tenant.", param="tenant_id")
    if await conn.scalar(select(tenants.c.id).where(tenants.c.id == borrower_id)) is None:
        raise NotFound(
            f"No tenant {borrower_id!r}; ask the borrower for its organization id (org-...).",
            param="tenant_id",
        )
    if await count_shares(conn, adapter.id) >= MAX_SHARES:
        raise InvalidInput(f"An adapter has at most {MAX_SHARES} borrowers.", param="tenant_id")
    await conn.execute(
        upsert(conn, adapter_shares)
        .values(adapter_id=adapter.id, tenant_id=borrower_id, created_at=DbNow())
        .on_conflict_do_nothing(index_elements=["adapter_id", "tenant_id"])
    )


async def unshare(conn: AsyncConnection, adapter: Row[Any], borrower_id: str) -> None:
    """Take the right away; the borrower's next request no longer finds the adapter.

    Raises:
        NotFound: the adapter is not shared with it.
    """
    borrows = (adapter_shares.c.adapter_id == adapter.id) & (
        adapter_shares.c.tenant_id == borrower_id
    )
    result = await conn.execute(delete(adapter_shares).where(borrows))
    if result.rowcount == 0:
        raise NotFound(
            f"Adapter {adapter.id} is not shared with {borrower_id!r}.", param="tenant_id"
        )
