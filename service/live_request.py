"""One request under way at a worker: puts its frames in order and knows what is still missing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.domain.messages import TokenFrame
    from scheduler.domain.request import RequestBody


class LiveRequest:
    """Book-keeping of one attempt to answer one request.

    Attributes:
        body: what was sent to the worker; its `request_id` is this attempt's.
        inbox: the worker's stream, which names its boot too.
        position: which of the caller's prompts this answers.
        num_attempts: workers tried so far.
        next_seq: sequence number of the frame to deliver next.
        last_arrival_s: monotonic time of the last sign of life.
    """

    def __init__(self, body: RequestBody, inbox: str, position: int, num_attempts: int = 1) -> None:
        self.body = body
        self.inbox = inbox
        self.position = position
        self.num_attempts = num_attempts
        self.next_seq = 0
        self.start_s = self.last_arrival_s = time.monotonic()
        self.first_token_s: float | None = None
        self.last_replay_s = 0.0
        self._early: dict[int, TokenFrame] = {}
        self._open = set(range(body.n))

    @property
    def id(self) -> str:
        """Id under which the worker reports."""
        return self.body.request_id

    @property
    def done(self) -> bool:
        """Whether every sequence has ended."""
        return not self._open

    @property
    def has_gap(self) -> bool:
        """Whether frames arrived beyond one that did not."""
        return bool(self._early)

    def close(self, index: int) -> None:
        """Expect no more of sequence `index`."""
        self._open.discard(index)

    def is_open(self, index: int) -> bool:
        """Whether sequence `index` goes on."""
        return index in self._open

    def take(self, frame: TokenFrame) -> list[TokenFrame]:
        """Accept a frame; returns those that are now due, in order.

        A frame that came before is dropped; one that came too early waits for the gap to fill.
        """
        self.last_arrival_s = time.monotonic()
        if frame.seq < self.next_seq:
            return []
        self._early[frame.seq] = frame
        due = []
        while self.next_seq in self._early:
            due.append(self._early.pop(self.next_seq))
            self.next_seq += 1
        if due and self.first_token_s is None:
            self.first_token_s = self.last_arrival_s
        return due
