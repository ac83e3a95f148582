"""The loops beside all work: send what the outbox holds, look for what got lost, tidy up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import SQLAlchemyError

from scheduler.domain.message_codec import encode
from scheduler.domain.messages import JobHint
from scheduler.store.adapter_orders import Orders
from scheduler.store.channel import Channel, ChannelDown
from scheduler.store.idempotency import Idempotency
from scheduler.store.leases import Leases
from scheduler.store.outbox import Outbox, OutboxKind, OutboxRow
from scheduler.tasks.registry import ADAPTER_ORDER

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from scheduler.settings import RelaySettings
    from scheduler.store.database import Database
    from scheduler.tasks.executor import Executor

log = structlog.get_logger(__name__)

PURGE_EVERY_S = 3600.0
# The network or the database is away: say so, and try again at the next turn.
PASSING = (SQLAlchemyError, ChannelDown, OSError)


class Relay:
    """Sends hints at least once; every one of its turns may be repeated or run twice at once."""

    def __init__(
        self, db: Database, executor: Executor, channel: Channel, settings: RelaySettings
    ) -> None:
        self._outbox = Outbox(db)
        self._leases = Leases(db)
        self._orders = Orders(db)
        self._idempotency = Idempotency(db)
        self._executor = executor
        self._channel = channel
        self._settings = settings

    async def run(self) -> None:
        """Run all loops until cancelled."""
        settings = self._settings
        async with asyncio.TaskGroup() as loops:
            loops.create_task(_every(settings.relay_poll_s, self.send_outbox))
            loops.create_task(_every(settings.relay_poll_s, self.send_orders))
            loops.create_task(_every(settings.resend_after_s / 4, self.resend_waiting))
            loops.create_task(_every(settings.reap_every_s, self.reap))
            loops.create_task(_every(PURGE_EVERY_S, self.purge))

    async def send_outbox(self) -> None:
        """Send all unsent rows; one is marked only after it was sent."""
        rows = await self._outbox.unsent()
        tasks = [row for row in rows if row.kind is not OutboxKind.JOB_HINT]
        hints = [row for row in rows if row.kind is OutboxKind.JOB_HINT]
        for row in tasks:
            await self._executor.submit(row.kind, row.job_id)
        if tasks:
            await self._outbox.mark_sent(tasks)
        if hints:
            await self._send_hints(hints)
            await self._outbox.mark_sent(hints)

    async def send_orders(self) -> None:
        """Have orders carried out; a hint that gets lost is sent again after a while."""
        for order_id in await self._orders.hint(self._settings.resend_after_s):
            await self._executor.submit(ADAPTER_ORDER, order_id)

    async def resend_waiting(self) -> None:
        """Hint again about jobs that nobody took."""
        resent = await self._outbox.resend_waiting(self._settings.resend_after_s)
        if resent:
            log.info("waiting_jobs_hinted_again", num_jobs=len(resent))

    async def reap(self) -> None:
        """Take jobs from workers that stopped renewing their lease."""
        for job_id in await self._leases.reap():
            log.warning("lease_expired", job_id=job_id)

    async def purge(self) -> None:
        """Forget what is too old to matter."""
        await self._outbox.purge()
        await self._idempotency.purge()

    async def _send_hints(self, rows: list[OutboxRow]) -> None:
        """Tell every worker; one that cannot use a hint ignores it."""
        job_ids = dict.fromkeys(row.job_id for row in rows)
        for worker in await self._channel.workers():
            for job_id in job_ids:
                await self._channel.append(worker.inbox, encode(JobHint(job_id=job_id)))


async def _every(period_s: float, turn: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await turn()
        except PASSING as error:
            log.warning("relay_turn_failed", turn=turn.__name__, reason=str(error))
        await asyncio.sleep(period_s)
