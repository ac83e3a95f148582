"""The gateway's side of the channel: requests out, frames in.

One loop reads this gateway's stream and hands every frame to its request's queue. Gaps are seen
by sequence number and asked for again. When a worker's boot has vanished, its requests move to
another one: from their start, or with the tokens so far, which the caller does not notice but as a
pause. A second death ends them with an error. A reader that leaves early (client gone, stop string
met) makes the worker stop.
"""

from __future__ import annotations

import asyncio
import signal
import time
import uuid
from collections import Counter
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import TYPE_CHECKING

import structlog

from scheduler.domain.errors import (
    ContextTooLong,
    DomainError,
    InvalidInput,
    Overloaded,
    QuotaExceeded,
    WorkerLost,
)
from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import (
    TO_GATEWAY,
    Abort,
    Listening,
    Message,
    Replay,
    Submit,
    TokenFrame,
)
from scheduler.domain.request import FinishReason
from scheduler.store.channel import START, ChannelDown
from service.answers import Answers
from service.live_request import LiveRequest
from service.live_requests import LiveRequests
from service.request_placer import RequestPlacer
from service.worker_roster import WorkerRoster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from scheduler.domain.request import RequestBody
    from scheduler.store.channel import Channel
    from service.settings import ServiceSettings

log = structlog.get_logger(__name__)

_BROKEN_OFF = (FinishReason.ABORT, FinishReason.ERROR)  # nobody here asked for an end
_WORKERS_ERRORS = {kind.code: kind for kind in (Overloaded, QuotaExceeded, InvalidInput)}
READ_BLOCK_MS = 1000
READ_COUNT = 256
REPLAY_PAUSE_S = 1.0  # a gap is asked for once, not with every frame behind it
FAREWELL_S = 2.0  # for the aborts of requests that shutdown cut off


class Move(StrEnum):
    """What became of a request whose worker died; the values are a metric's label."""

    RETRY = "retry"
    CONTINUATION = "continuation"
    NONE = "none"


class WorkerPool:
    """Sends requests to workers and routes their frames back.

    Args:
        channel: connection to the broker.
        settings: limits and times.
    """

    def __init__(self, channel: Channel, settings: ServiceSettings) -> None:
        self.roster = WorkerRoster(settings.worker_grace_s)
        self.num_gaps = 0
        self.num_moves: Counter[Move] = Counter(dict.fromkeys(Move, 0))
        self._placer = RequestPlacer(self.roster)
        self._channel = channel
        self._stream = f"out:{settings.gateway_id}:{uuid.uuid4().hex[:12]}"
        self._settings = settings
        self.live = LiveRequests()
        self._commands: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the loops for as long as the block lasts; commands still queued are sent first."""
        await self._refresh()
        loops = [
            asyncio.create_task(loop())
            for loop in (self._read_frames, self._send_commands, self._watch)
        ]
        for loop in loops:
            loop.add_done_callback(_end_process_if_crashed)
        try:
            yield
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    await self._commands.join()
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    # ---- what routes use -----------------------------------------------------------------

    @asynccontextmanager
    async def open(self, bodies: Sequence[RequestBody]) -> AsyncIterator[Answers]:
        """Send requests of one caller; whatever is unfinished when the block ends is aborted.

        Raises:
            QuotaExceeded: the tenant has too much under way already.
            Overloaded: no worker, or all of them full.
            InvalidInput: the workers do not know the tenant's service class.
        """
        self._admit(bodies)
        answers = Answers(self, sum(body.n * (body.sampling.max_tokens + 2) for body in bodies))
        try:
            for position, body in enumerate(bodies):
                worker = self._placer.place(body, self.live.num_by_inbox())
                answers.expect(body.n)
                await self._send(LiveRequest(body, worker.inbox, position), answers)
            yield answers
        finally:
            answers.close()
            for live in answers.live:
                self.abandon(live)

    def stop(self, live: LiveRequest, index: int) -> None:
        """Take no more of one sequence (its stop string was met)."""
        live.close(index)
        self._commands.put_nowait((live.inbox, Abort(request_id=live.id, index=index)))
        if live.done:
            self.live.drop(live)

    def abandon(self, live: LiveRequest) -> None:
        """Forget a request; the worker is told unless it is through with it."""
        if self.live.drop(live) and not live.done:
            self._commands.put_nowait((live.inbox, Abort(request_id=live.id)))

    # ---- sending -------------------------------------------------------------------------

    def _admit(self, bodies: Sequence[RequestBody]) -> None:
        mine = self.live.num_sequences(bodies[0].tenant_id)
        wanted = sum(body.num_sequences for body in bodies)
        if mine + wanted > self._settings.max_live_per_tenant:
            raise QuotaExceeded(
                f"{mine} answers of yours are under way and {wanted} more would pass the limit of "
                f"{self._settings.max_live_per_tenant} (a mixture counts once for each of its "
                "models); wait for some to finish.",
            )
        self._refuse_when_full(bodies[0].base_model)
        self.roster.check_served(bodies[0].base_model, bodies[0].service_class)

    def _refuse_when_full(self, base_model: str) -> None:
        worker = self.roster.least_loaded(base_model, self.live.num_by_inbox())
        waiting = self.live.num_waiting(worker.inbox)
        reported = worker.stats.num_waiting if worker.stats else 0
        if max(waiting, reported) >= self._settings.max_waiting_per_worker:
            raise Overloaded(
                f"Every worker of {base_model!r} has a full queue; try again in a few seconds.",
                retry_after_s=2,
            )

    async def _send(self, live: LiveRequest, answers: Answers) -> None:
        self.live.add(live, answers)
        answers.live.append(live)
        submit = Submit(request=live.body, reply_to=self._stream)
        await self._channel.append(live.inbox, encode(submit))
        live.is_sent = True

    async def _send_commands(self) -> None:
        while True:
            inbox, message = await self._commands.get()
            try:
                await self._channel.append(inbox, encode(message))
            except ChannelDown as error:
                log.warning("command_failed", inbox=inbox, reason=str(error))
                if isinstance(message, Abort):  # everything else is said again by itself
                    self._commands.put_nowait((inbox, message))
            finally:
                self._commands.task_done()

    # ---- receiving -----------------------------------------------------------------------

    async def _read_frames(self) -> None:
        last_id = START
        while True:
            try:
                found = await self._channel.read(
                    {self._stream: last_id}, block_ms=READ_BLOCK_MS, count=READ_COUNT
                )
            except ChannelDown as error:
                log.warning("channel_read_failed", reason=str(error))
                await asyncio.sleep(0.2)
                continue
            for _, entry_id, packed in found:
                last_id = entry_id
                self._take(packed)

    def _take(self, packed: bytes) -> None:
        try:
            message = decode(TO_GATEWAY, packed)
        except ValueError as error:
            log.error("bad_message_from_worker", reason=str(error)[:500])
            return
        for frame in message.frames:
            known = self.live.get(frame.request_id)
            if known is not None:
                self._route(frame, *known)

    def _route(self, frame: TokenFrame, live: LiveRequest, answers: Answers) -> None:
        for due in live.take(frame):
            if due.error is not None:
                self._end_with_error(live, answers, due)
                return
            if not live.is_open(due.index):
                continue  # its reader has had enough of it
            if due.finish_reason in _BROKEN_OFF:
                self.live.drop(live)
                answers.fail(WorkerLost("The worker broke the answer off; send the request again."))
                return
            live.note(due)
            answers.put(live, due)
            if due.finish_reason is not None:
                live.close(due.index)
        if live.done:
            self.live.drop(live)
        elif live.has_gap:
            self.num_gaps += 1
            self._ask_replay(live)

    def _end_with_error(self, live: LiveRequest, answers: Answers, frame: TokenFrame) -> None:
        self.live.drop(live)
        if frame.error_code == WorkerLost.code:
            self._move_or_fail(live, answers)
            return
        answers.fail(_error_of(frame))

    def _ask_replay(self, live: LiveRequest) -> None:
        now_s = time.monotonic()
        if now_s - live.last_replay_s < REPLAY_PAUSE_S:
            return
        live.last_replay_s = now_s
        replay = Replay(request_id=live.id, reply_to=self._stream, from_seq=live.next_seq)
        self._commands.put_nowait((live.inbox, replay))

    # ---- workers that come and go --------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._settings.refresh_s)
            await self._refresh()
            for inbox in self.live.num_by_inbox():
                self._commands.put_nowait((inbox, Listening(reply_to=self._stream)))
            now_s = time.monotonic()
            for live, answers in self.live.pairs():
                silent_s, missed_s = now_s - live.last_arrival_s, now_s - live.last_replay_s
                if silent_s > self._settings.stall_limit_s:
                    self.abandon(live)
                    answers.fail(WorkerLost("The worker fell silent; send the request again."))
                elif live.is_sent and min(silent_s, missed_s) > self._settings.replay_after_s:
                    self._ask_replay(live)

    async def _refresh(self) -> None:
        try:
            announced = await self._channel.workers()
        except ChannelDown as error:
            log.warning("registry_unreadable", reason=str(error))
            return
        lost = self.roster.refresh(announced, time.monotonic())
        for inbox in lost:
            self._placer.forget(inbox)
            self._lose(inbox)

    def _lose(self, inbox: str) -> None:
        victims = self.live.at(inbox)
        log.warning("worker_lost", inbox=inbox, num_requests=len(victims))
        for live, answers in victims:
            self.abandon(live)  # it may only have been cut off
            self._move_or_fail(live, answers)

    def _move_or_fail(self, live: LiveRequest, answers: Answers) -> None:
        if live.may_move:
            answers.move(self._move(live, answers))
            return
        self.num_moves[Move.NONE] += 1
        answers.fail(WorkerLost("The worker stopped amid the answer; send the request again."))

    async def _move(self, live: LiveRequest, answers: Answers) -> None:
        """Give a request whose worker died to another one, under a new id."""
        if live.done:  # its reader has just had enough of it
            return
        body = live.moved_body()
        try:
            worker = self._placer.place(body, self.live.num_by_inbox(), avoid=[live.inbox])
            self.num_moves[Move.CONTINUATION if body.begun else Move.RETRY] += 1
            log.info("request_moved", request_id=live.id, inbox=worker.inbox, begun=live.has_begun)
            moved = LiveRequest(body, worker.inbox, live.position, live.num_attempts + 1)
            await self._send(moved, answers)
        except DomainError:
            self.num_moves[Move.NONE] += 1
            answers.fail(WorkerLost("The worker stopped, and no other is free; ask again."))


def _end_process_if_crashed(loop: asyncio.Task[None]) -> None:
    """A gateway without one of its loops would hang every request; a restarted one does not."""
    if not loop.cancelled() and loop.exception() is not None:
        log.critical("pool_loop_crashed", exc_info=loop.exception())
        signal.raise_signal(signal.SIGTERM)


def _error_of(frame: TokenFrame) -> DomainError:
    """The domain error that a worker's error frame stands for."""
    text = frame.error or "The worker could not answer."
    if frame.error_code == ContextTooLong.code:
        return ContextTooLong(text, param="messages")
    return _WORKERS_ERRORS.get(frame.error_code or "", DomainError)(text)
