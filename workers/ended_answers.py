"""What callers were told of late, for those who missed the end of it."""

from __future__ import annotations

from scheduler.domain.errors import WorkerLost
from scheduler.domain.messages import Replay, TokenFrame
from workers.live_request import LiveRequest

MAX_FRAMES = 16_384  # in all; the oldest requests make room


class EndedAnswers:
    """The frames of requests that have ended, oldest first.

    Args:
        max_frames: how many are kept.
    """

    def __init__(self, max_frames: int = MAX_FRAMES) -> None:
        self._max_frames = max_frames
        self._num_frames = 0
        self._frames: dict[str, list[TokenFrame]] = {}

    def add(self, ended: LiveRequest) -> None:
        """Keep a request's frames for a while."""
        request_id = ended.order.request.request_id
        self._num_frames += len(ended.frames) - len(self._frames.pop(request_id, ()))
        self._frames[request_id] = ended.frames
        while self._num_frames > self._max_frames:
            oldest = next(iter(self._frames))
            self._num_frames -= len(self._frames.pop(oldest))

    def again(self, order: Replay) -> tuple[TokenFrame, ...]:
        """The frames that are asked for, or an error if they are gone: somebody waits for them."""
        kept = self._frames.get(order.request_id, [])[order.from_seq :]
        return tuple(kept) or (
            TokenFrame(
                request_id=order.request_id,
                index=0,
                seq=order.from_seq,
                error="The rest of the answer was lost.",
                error_code=WorkerLost.code,
            ),
        )
