"""Movable names of immutable versions: what is live, and tags.

All functions work in the transaction of a caller that holds the adapter's row locked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Row, delete, func, insert, select, update

from scheduler.domain.errors import Conflict, InvalidInput, NotFound
from scheduler.store.adapter_names import check_tag
from scheduler.store.clock import DbNow
from scheduler.store.tables import adapter_promotions, adapter_tags, adapter_versions, adapters
from scheduler.store.upsert import upsert

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_TAGS = 64  # of one adapter
OVERTAKEN = "Another version became live meanwhile."  # why a version that was made is not


async def promote(conn: AsyncConnection, adapter: Row[Any], version: int) -> None:
    """Make the version live; one that is live already stays so, and no history is written.

    Raises:
        NotFound: the adapter has no such version.
    """
    await check_version(conn, adapter, version)
    if adapter.live_version == version:
        return
    await conn.execute(
        insert(adapter_promotions).values(
            adapter_id=adapter.id,
            version=version,
            previous_version=adapter.live_version,
            created_at=DbNow(),
        )
    )
    await _set_live(conn, adapter.id, version)


async def roll_back(conn: AsyncConnection, adapter: Row[Any]) -> None:
    """Undo the newest promotion that stands; repeated, it walks back through all of them.

    Raises:
        Conflict: there is none.
    """
    promotions = adapter_promotions.c
    newest = (
        select(adapter_promotions)
        .where(promotions.adapter_id == adapter.id, promotions.undone_at.is_(None))
        .order_by(promotions.seq.desc())
        .limit(1)
    )
    row = (await conn.execute(newest)).one_or_none()
    if row is None:
        raise Conflict(
            f"Adapter {adapter.id} has no promotion to roll back; promote a version instead."
        )
    await conn.execute(
        update(adapter_promotions).where(promotions.seq == row.seq).values(undone_at=DbNow())
    )
    await _set_live(conn, adapter.id, row.previous_version)


async def set_tag(conn: AsyncConnection, adapter: Row[Any], tag: str, version: int) -> None:
    """Put the tag on the version, taking it from any other.

    Raises:
        InvalidInput: the tag is no valid name, or there are too many.
        NotFound: the adapter has no such version.
    """
    check_tag(tag)
    await check_version(conn, adapter, version)
    others = select(func.count()).where(
        adapter_tags.c.adapter_id == adapter.id, adapter_tags.c.tag != tag
    )
    if int(await conn.scalar(others) or 0) >= MAX_TAGS:
        raise InvalidInput(
            f"Adapter {adapter.id} has {MAX_TAGS} tags, which is the limit; delete one first.",
            param="tag",
        )
    moved = {"version": version, "updated_at": DbNow()}
    await conn.execute(
        upsert(conn, adapter_tags)
        .values(adapter_id=adapter.id, tag=tag, **moved)
        .on_conflict_do_update(index_elements=["adapter_id", "tag"], set_=moved)
    )


async def drop_tag(conn: AsyncConnection, adapter: Row[Any], tag: str) -> None:
    """Forget the tag.

    Raises:
        NotFound: the adapter has no such tag.
    """
    named = (adapter_tags.c.adapter_id == adapter.id) & (adapter_tags.c.tag == tag)
    result = await conn.execute(delete(adapter_tags).where(named))
    if result.rowcount == 0:
        raise NotFound(f"Adapter {adapter.id} has no tag {tag!r}.", param="tag")


async def check_version(conn: AsyncConnection, adapter: Row[Any], version: int) -> None:
    """Raises NotFound when the adapter has no such version."""
    versions = adapter_versions.c
    query = select(versions.version).where(
        versions.adapter_id == adapter.id, versions.version == version
    )
    if await conn.scalar(query) is None:
        raise NotFound(
            f"Adapter {adapter.id} has no version {version}; "
            f"GET /v1/adapters/{adapter.id}/versions lists them.",
            param="version",
        )


async def _set_live(conn: AsyncConnection, adapter_id: str, version: int | None) -> None:
    await conn.execute(
        update(adapters).where(adapters.c.id == adapter_id).values(live_version=version)
    )
