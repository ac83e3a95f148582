"""`python -m scheduler.probe`: whether the relay does its work, seen by what it leaves undone.

For health checks, since the scheduler process has no port to ask.
"""

from __future__ import annotations

import asyncio
import sys

from scheduler.health_check import asked_briefly
from scheduler.settings import SchedulerSettings
from scheduler.store.board import Board
from scheduler.store.database import Database

OVERDUE_S = 60.0  # rows are sent within a second; a broker that restarts takes longer


async def is_sending(settings: SchedulerSettings) -> bool:
    """Whether no row of the outbox has waited for a minute.

    Raises:
        SQLAlchemyError, TimeoutError: the database cannot be asked.
    """
    async with asked_briefly(Database(settings.database_url)) as database:
        backlog = await Board(database).outbox()
    return backlog.oldest_s < OVERDUE_S


if __name__ == "__main__":
    sys.exit(not asyncio.run(is_sending(SchedulerSettings())))
