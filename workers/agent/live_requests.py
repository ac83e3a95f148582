"""Which requests the engine is answering, so that none ends in silence when the engine dies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scheduler.domain.messages import Frames, TokenFrame

if TYPE_CHECKING:
    from scheduler.domain.messages import Submit


@dataclass(slots=True)
class LiveRequest:
    """What has been said to the caller so far.

    Attributes:
        reply_to: stream of the gateway that waits.
        open: indices of the answers that have not ended.
        next_seq: sequence number that the next frame must carry.
    """

    request_id: str
    reply_to: str
    open: set[int]
    next_seq: int = 0

    def failed(self, error: str, code: str) -> Frames:
        """The frame that ends it."""
        return error_frames(self.request_id, self.reply_to, self.next_seq, error, code)


class LiveRequests:
    """The requests between their Submit and their last frame."""

    def __init__(self) -> None:
        self._live: dict[str, LiveRequest] = {}
        self._num_silent: dict[str, int] = {}  # periods by stream, of gateways that say they listen

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    def add(self, submit: Submit) -> None:
        """A request has come in."""
        request = submit.request
        if submit.reply_to in self._num_silent:
            self.hear(submit.reply_to)
        wanted = {answer.index for answer in request.wanted_answers}
        self._live[request.request_id] = LiveRequest(
            request.request_id, submit.reply_to, open=wanted
        )

    def observe(self, frames: Frames) -> None:
        """The engine said something: count, and forget what has ended."""
        for frame in frames.frames:
            live = self._live.get(frame.request_id)
            if live is None:
                continue
            live.next_seq = max(live.next_seq, frame.seq + 1)
            if frame.error is not None:
                del self._live[frame.request_id]
            elif frame.finish_reason is not None:
                self._end(live, frame.index)

    def forget(self, request_id: str, index: int | None = None) -> None:
        """The caller has left, or has seen enough of one answer; its last frames may not come."""
        live = self._live.get(request_id)
        if live is None:
            return
        for ended in list(live.open) if index is None else [index]:
            self._end(live, ended)

    def hear(self, reply_to: str) -> None:
        """A gateway says that it listens."""
        self._num_silent[reply_to] = 0

    def orphans(self, max_silent: int) -> list[str]:
        """Count another period; the requests of gateways that were silent for more than so many.

        Periods and no times, so that a worker that was stopped itself blames nobody.
        """
        waiting = {live.reply_to for live in self._live.values()}
        self._num_silent = {
            stream: count + 1 for stream, count in self._num_silent.items() if stream in waiting
        }
        return [
            live.request_id
            for live in self._live.values()
            if self._num_silent.get(live.reply_to, 0) > max_silent
        ]

    def fail(self, request_id: str, error: str, code: str) -> Frames | None:
        """End one request with an error frame; None when nobody waits for it."""
        live = self._live.pop(request_id, None)
        return live.failed(error, code) if live else None

    def fail_all(self, error: str, code: str) -> list[Frames]:
        """End every request with an error frame."""
        lost = [live.failed(error, code) for live in self._live.values()]
        self._live.clear()
        return lost

    def _end(self, live: LiveRequest, index: int) -> None:
        live.open.discard(index)
        if not live.open:
            self._live.pop(live.request_id, None)


def error_frames(request_id: str, reply_to: str, seq: int, error: str, code: str) -> Frames:
    """One frame, of sequence number `seq`, that ends a request."""
    frame = TokenFrame(request_id=request_id, index=0, seq=seq, error=error, error_code=code)
    return Frames(reply_to=reply_to, frames=(frame,))
