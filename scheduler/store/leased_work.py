"""Rows that are work: taken under a short lease, fenced by the number of the try, ended once.

A table of them has the columns `id`, `status`, `num_tries`, `lease_until`, `error_message` and
`finished_at`. All functions work in the caller's transaction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Row, Table, or_, update

from scheduler.domain.work_status import WorkStatus
from scheduler.store.clock import DbNow

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

MAX_TRIES = 3  # work that killed so many processes is given up
WORN_OUT = f"It failed {MAX_TRIES} times without a reason."


@dataclass(frozen=True, slots=True)
class Claim:
    """One try of one row; no later write of another try passes for it."""

    id: str
    num_tries: int

    @property
    def is_worn_out(self) -> bool:
        """Whether the tries before it have been enough."""
        return self.num_tries > MAX_TRIES


@dataclass(frozen=True, slots=True)
class LeasedWork:
    """The work in one table.

    Attributes:
        table: where it lies.
        lease_s: how long a claim lasts without being renewed.
    """

    table: Table
    lease_s: float

    @property
    def is_free(self) -> ColumnElement[bool]:
        """Nobody is at it: it waits, or whoever had it has stopped renewing."""
        columns = self.table.c
        expired = or_(columns.lease_until.is_(None), columns.lease_until < DbNow())
        is_running = columns.status == WorkStatus.RUNNING
        return or_(columns.status == WorkStatus.QUEUED, is_running & expired)

    async def take(self, conn: AsyncConnection, row_id: str) -> Row[Any] | None:
        """Claim a row and return it; None when it is not wanted or somebody is at it."""
        statement = (
            update(self.table)
            .where(self.table.c.id == row_id, self.is_free)
            .values(
                status=WorkStatus.RUNNING,
                num_tries=self.table.c.num_tries + 1,
                lease_until=DbNow() + self.lease_s,
            )
            .returning(self.table)
        )
        row: Row[Any] | None = (await conn.execute(statement)).one_or_none()
        return row

    async def renew(self, conn: AsyncConnection, claim: Claim) -> bool:
        """Extend the lease; False when the claim does not hold any more."""
        return await self.change(conn, claim, lease_until=DbNow() + self.lease_s)

    async def change(self, conn: AsyncConnection, claim: Claim, **values: object) -> bool:
        """Write under the claim; False when it does not hold any more."""
        result = await conn.execute(
            update(self.table)
            .where(
                self.table.c.id == claim.id,
                self.table.c.num_tries == claim.num_tries,
                self.table.c.status == WorkStatus.RUNNING,
            )
            .values(values or {"num_tries": claim.num_tries})
        )
        return result.rowcount == 1

    async def end(
        self, conn: AsyncConnection, claim: Claim, *, error: str | None = None, **made: object
    ) -> bool:
        """Put it into a final state; False when the claim does not hold any more."""
        return await self.change(
            conn,
            claim,
            status=WorkStatus.FAILED if error else WorkStatus.SUCCEEDED,
            error_message=error,
            finished_at=DbNow(),
            lease_until=None,
            **made,
        )

    async def give_back(self, conn: AsyncConnection, claim: Claim, **values: object) -> bool:
        """Queue it again, as if it had not been tried."""
        return await self.change(
            conn,
            claim,
            status=WorkStatus.QUEUED,
            lease_until=None,
            num_tries=claim.num_tries - 1,
            **values,
        )
