"""One engine child, from its start to its end: orders in, reports out, under one boot id.

The boot id is part of the inbox's name, so a new engine never sees what was meant for the one
before it. Whatever the old one still owed is answered with an error, never with silence.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import structlog

from scheduler.domain.errors import DomainError, WorkerLost
from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import (
    TO_WORKER,
    UNREAD_SUBMIT,
    Abort,
    Drain,
    EngineReady,
    EngineStats,
    Frames,
    Generate,
    JobHint,
    Listening,
    Replay,
    Submit,
)
from scheduler.store.channel import START, ChannelDown
from workers.agent.announcement import Announcement
from workers.agent.job_keeper import JobKeeper
from workers.agent.live_requests import LiveRequests, error_frames

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scheduler.domain.adapter import AdapterRef
    from scheduler.domain.messages import FromEngine, ToWorker
    from scheduler.store.channel import Channel
    from scheduler.store.leases import Leases
    from scheduler.store.objects import ObjectStore
    from workers.agent.adapter_cache import AdapterCache
    from workers.engine_process import EngineProcess
    from workers.settings import WorkerSettings

INBOX_BLOCK_MS = 1000
CHANNEL_RETRY_PAUSE_S = 0.5
SILENT_PERIODS = 10  # that make up the silence after which a gateway is given up

log = structlog.get_logger(__name__)


class EngineSession:
    """The traffic of one engine child.

    Args:
        settings: limits and periods.
        channel: requests in, frames out, registry.
        leases: jobs in SQL.
        objects: the jobs' files.
        adapters: adapters on this machine.
        engine: the child.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        channel: Channel,
        leases: Leases,
        objects: ObjectStore,
        adapters: AdapterCache,
        engine: EngineProcess,
    ) -> None:
        self._settings = settings
        self._channel = channel
        self._adapters = adapters
        self._engine = engine
        self._jobs = JobKeeper(settings, leases, objects, engine.send)
        self._live = LiveRequests()
        self._fetching: dict[str, asyncio.Task[None]] = {}
        self._outgoing: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._announcement: Announcement
        self._is_draining = False

    async def run(self, draining: asyncio.Event) -> None:
        """Serve until the engine ends; `draining` asks it to end."""
        ready = await self._wait_until_ready(draining)
        if ready is None:
            return
        boot_id = secrets.token_hex(4)
        self._announcement = Announcement(self._settings.worker_id, boot_id, ready.capabilities)
        log.info("worker_ready", boot_id=boot_id, engine_pid=self._engine.pid)
        base_models = frozenset(model.id for model in ready.capabilities.base_models)
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send_frames())
            until_drain = [
                group.create_task(self._announce()),
                group.create_task(
                    self._jobs.claim_for_ever(base_models, lambda: self._announcement.serving_share)
                ),
            ]
            until_end = [
                group.create_task(self._read_inbox(group)),
                group.create_task(self._drain_when(draining, until_drain)),
                group.create_task(self._stop_orphans()),
            ]
            await self._read_reports()
            await self._wind_up()
            for task in (*until_drain, *until_end, *self._fetching.values()):
                task.cancel()
            await self._outgoing.join()
            sending.cancel()

    # ---- life ----------------------------------------------------------------------------

    async def _wait_until_ready(self, draining: asyncio.Event) -> EngineReady | None:
        """Return the engine's first word; None when it died, or shall end, before that."""
        waiting = asyncio.create_task(draining.wait())
        starting = asyncio.create_task(self._engine.receive())
        done, rest = await asyncio.wait(
            {waiting, starting},
            timeout=self._settings.engine_start_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        if starting not in done or (received := starting.result()) is None:
            return None
        message, _ = received
        return message if isinstance(message, EngineReady) else None

    async def _drain_when(
        self, draining: asyncio.Event, accepting: Sequence[asyncio.Task[None]]
    ) -> None:
        """Take no new work, have the engine finish what it has, and close it when time is up."""
        await draining.wait()
        self._is_draining = True
        for task in accepting:
            task.cancel()
        await self._withdraw()
        await self._engine.send(Drain())
        await asyncio.sleep(self._settings.drain_timeout_s)
        log.warning("drain_timed_out", requests=len(self._live))
        self._engine.close()

    async def _wind_up(self) -> None:
        """The engine is gone: settle what it reported, answer and give back the rest."""
        await self._withdraw()
        for frames in self._live.fail_all("The worker stopped in mid-answer.", WorkerLost.code):
            self._send_to_gateway(frames)
        if self._is_draining:
            await self._jobs.settle(self._settings.drain_timeout_s)
        await self._jobs.release_all(crashed=not self._is_draining)

    async def _withdraw(self) -> None:
        try:
            await self._channel.withdraw(self._settings.worker_id)
        except ChannelDown:
            log.warning("channel_down", doing="withdraw")  # the announcement runs out by itself

    # ---- from the engine -----------------------------------------------------------------

    async def _read_reports(self) -> None:
        while (received := await self._engine.receive()) is not None:
            self._handle_report(*received)

    def _handle_report(self, message: FromEngine, body: bytes) -> None:
        if isinstance(message, Frames):
            self._live.observe(message)
            self._outgoing.put_nowait((message.reply_to, body))  # as it came: no second encoding
        elif isinstance(message, EngineStats):
            self._announcement.add(message)
        elif not isinstance(message, EngineReady):
            self._jobs.report(message)

    def _send_to_gateway(self, frames: Frames) -> None:
        self._outgoing.put_nowait((frames.reply_to, encode(frames)))

    async def _send_frames(self) -> None:
        """Append frames in order; a gateway sees what a broken channel swallowed as a gap."""
        while True:
            stream, body = await self._outgoing.get()
            try:
                await self._channel.append(stream, body)
            except ChannelDown:
                log.warning("channel_down", doing="append", stream=stream)
            finally:
                self._outgoing.task_done()

    async def _announce(self) -> None:
        while True:
            disk = await asyncio.to_thread(self._adapters.tier)
            try:
                await self._channel.announce(
                    self._announcement.take(disk), self._settings.announce_ttl_s
                )
            except ChannelDown:
                log.warning("channel_down", doing="announce")
            await asyncio.sleep(self._settings.announce_every_s)

    # ---- from the gateways ---------------------------------------------------------------

    async def _read_inbox(self, group: asyncio.TaskGroup) -> None:
        inbox, last_id = self._announcement.inbox, START
        while True:
            try:
                entries = await self._channel.read({inbox: last_id}, block_ms=INBOX_BLOCK_MS)
            except ChannelDown:
                log.warning("channel_down", doing="read")
                await asyncio.sleep(CHANNEL_RETRY_PAUSE_S)
                continue
            for _, entry_id, body in entries:
                last_id = entry_id
                try:
                    order = decode(TO_WORKER, body)
                except ValueError as error:
                    log.error("order_refused", reason=str(error)[:500])
                    self._refuse_unread(body)
                    continue
                await self._obey(order, group)

    async def _obey(self, order: ToWorker, group: asyncio.TaskGroup) -> None:
        if isinstance(order, JobHint):
            self._jobs.hint(order.job_id)
        elif isinstance(order, Submit):
            await self._submit(order, group)
        elif isinstance(order, Abort):
            await self._abort(order)
        elif isinstance(order, Replay):
            if order.request_id not in self._fetching:  # else all of its frames are yet to come
                await self._engine.send(order)
        elif isinstance(order, Listening):
            self._live.hear(order.reply_to)
        else:
            await self._engine.send(order)

    async def _submit(self, submit: Submit, group: asyncio.TaskGroup) -> None:
        request_id = submit.request.request_id
        if request_id in self._live:  # the channel may repeat an entry
            return
        self._live.add(submit)
        if self._is_draining:
            self._refuse(request_id, "This worker is shutting down.", WorkerLost.code)
            return
        adapters = submit.request.adapters
        found = {adapter.digest: self._adapters.cached(adapter) for adapter in adapters}
        folders = {digest: folder for digest, folder in found.items() if folder is not None}
        if len(folders) == len(adapters):
            await self._generate(submit, folders)
        else:
            task = group.create_task(self._fetch_then_generate(submit, adapters))
            self._fetching[request_id] = task
            task.add_done_callback(lambda _: self._fetching.pop(request_id, None))

    async def _fetch_then_generate(self, submit: Submit, adapters: Sequence[AdapterRef]) -> None:
        try:
            folders = {adapter.digest: await self._adapters.fetch(adapter) for adapter in adapters}
        except DomainError as error:
            self._refuse(submit.request.request_id, error.message, error.code)
        except OSError as error:
            adapter_ids = [adapter.adapter_id for adapter in adapters]
            log.error("adapter_unavailable", adapter_ids=adapter_ids, error=str(error))
            self._refuse(
                submit.request.request_id, "The adapter's files cannot be read.", WorkerLost.code
            )
        else:
            await self._generate(submit, folders)

    async def _generate(self, submit: Submit, folders: Mapping[str, Path]) -> None:
        await self._engine.send(
            Generate(
                request=submit.request,
                reply_to=submit.reply_to,
                adapter_dirs={digest: str(folder) for digest, folder in folders.items()},
            )
        )

    async def _abort(self, abort: Abort) -> None:
        if abort.request_id in self._fetching:
            self._fetching[abort.request_id].cancel()
        self._live.forget(abort.request_id, abort.index)
        await self._engine.send(abort)

    async def _stop_orphans(self) -> None:
        """Stop the requests of gateways that have died; one that only slept is told."""
        while True:
            await asyncio.sleep(self._settings.gateway_silence_s / SILENT_PERIODS)
            for request_id in self._live.orphans(SILENT_PERIODS):
                log.warning("gateway_silent", request_id=request_id)
                self._refuse(request_id, "The gateway fell silent.", WorkerLost.code)
                await self._abort(Abort(request_id=request_id))

    def _refuse_unread(self, body: bytes) -> None:
        """Let a newer gateway send a request elsewhere that this worker cannot read."""
        try:
            unread = decode(UNREAD_SUBMIT, body)
        except ValueError:
            return  # no request: nobody waits
        error = "This worker is older than its gateway, and cannot read the request."
        self._send_to_gateway(
            error_frames(unread.request.request_id, unread.reply_to, 0, error, WorkerLost.code)
        )

    def _refuse(self, request_id: str, error: str, code: str) -> None:
        frames = self._live.fail(request_id, error, code)
        if frames is not None:
            self._send_to_gateway(frames)
