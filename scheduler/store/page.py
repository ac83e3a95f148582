"""One page of a cursor-paged list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from sqlalchemy import tuple_

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Row, Select, Table
    from sqlalchemy.ext.asyncio import AsyncConnection

T = TypeVar("T")
Order = Literal["asc", "desc"]

MAX_PAGE_ITEMS = 10_000  # OpenAI's bound on files; the HTTP layer sets tighter ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """Items in list order, and whether the list goes on after them.

    Attributes:
        items: the page.
        has_more: whether a further page follows; its cursor is the last item's id.
    """

    items: tuple[T, ...]
    has_more: bool

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


async def fetch_page(
    conn: AsyncConnection,
    query: Select[Any],
    table: Table,
    *,
    after: str | None,
    limit: int,
    order: Order = "desc",
    by: tuple[str, ...] = ("seq",),
) -> Page[Row[Any]]:
    """The rows of `query` over `table` that follow the row with id `after`.

    Args:
        conn: the caller's transaction.
        query: all rows of the list.
        table: whose `id` is the cursor.
        after: id of the last row of the page before.
        limit: rows of a full page.
        order: of the columns in `by`.
        by: columns of `table` that no two rows have alike.

    Raises:
        InvalidInput: `after` is not among the query's rows, or `limit` is out of range.
    """
    if not 1 <= limit <= MAX_PAGE_ITEMS:
        raise InvalidInput(f"limit must be from 1 to {MAX_PAGE_ITEMS}.", param="limit")
    keys = [table.c[name] for name in by]
    place = tuple_(*keys)
    if after is not None:
        cursor = (await conn.execute(query.where(table.c.id == after))).one_or_none()
        if cursor is None:
            raise InvalidInput(
                f"after={after!r} is not in this list; send the last id of a page.", param="after"
            )
        here = tuple_(*(getattr(cursor, name) for name in by), types=[key.type for key in keys])
        query = query.where(place < here if order == "desc" else place > here)
    ordered = query.order_by(*(key.desc() if order == "desc" else key.asc() for key in keys))
    rows = (await conn.execute(ordered.limit(limit + 1))).all()
    return Page(items=tuple(rows[:limit]), has_more=len(rows) > limit)
