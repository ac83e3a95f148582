"""What one caller reads: the frames of all its live requests, in order of arrival."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from scheduler.domain.errors import DomainError, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from scheduler.domain.messages import TokenFrame
    from service.live_request import LiveRequest


class Stopper(Protocol):
    """Whoever can make a worker stop one sequence."""

    def stop(self, live: LiveRequest, index: int) -> None:
        """Take no more of sequence `index`."""


class Answers:
    """An asynchronous iterator over (position of the prompt, frame) until all have ended.

    Args:
        stopper: the pool, told when the reader has all it wants of a sequence.
        max_frames: bound of the queue; as many as the requests can produce, so that a slow
            client never holds up the read loop.
    """

    def __init__(self, stopper: Stopper, max_frames: int) -> None:
        self.live: list[LiveRequest] = []
        self._stopper = stopper
        self._queue: asyncio.Queue[tuple[LiveRequest, TokenFrame] | DomainError] = asyncio.Queue(
            max_frames + 1
        )
        self._num_open = 0
        self._stopped: set[tuple[int, int]] = set()
        self._moves: set[asyncio.Future[None]] = set()

    def expect(self, num_sequences: int) -> None:
        """Count the sequences that a newly sent request will bring."""
        self._num_open += num_sequences

    def put(self, live: LiveRequest, frame: TokenFrame) -> None:
        """Hand a frame to the reader."""
        try:
            self._queue.put_nowait((live, frame))
        except asyncio.QueueFull:
            self.fail(WorkerLost("The worker sent more than it was asked for."))

    def fail(self, error: DomainError) -> None:
        """End the reader with an error, after what it has not read yet is dropped if need be."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(error)

    def move(self, moving: Awaitable[None]) -> None:
        """Let a request be sent to another worker in the background."""
        task = asyncio.ensure_future(moving)
        self._moves.add(task)
        task.add_done_callback(self._moves.discard)

    def close(self) -> None:
        """Nobody reads any more: what is not on its way to a worker yet stays here."""
        for task in self._moves:
            task.cancel()

    def stop(self, position: int, index: int) -> None:
        """The reader has all it wants of one sequence."""
        if (position, index) in self._stopped:
            return
        self._stopped.add((position, index))
        self._num_open -= 1
        for live in self.live:
            if live.position == position and live.is_open(index):
                self._stopper.stop(live, index)

    def __aiter__(self) -> Answers:
        return self

    async def __anext__(self) -> tuple[int, TokenFrame]:
        while self._num_open > 0:
            arrived = await self._queue.get()
            if isinstance(arrived, DomainError):
                raise arrived
            live, frame = arrived
            if (live.position, frame.index) in self._stopped:
                continue
            if frame.finish_reason is not None:
                self._stopped.add((live.position, frame.index))
                self._num_open -= 1
            return live.position, frame
        raise StopAsyncIteration

    @property
    def ready(self) -> bool:
        """Whether a frame can be read without waiting."""
        return not self._queue.empty()
