"""One request under way at a worker: puts its frames in order and knows what is still missing.

Randomness is stateless per seed and position, so another worker that gets the tokens so far goes on
with the very same answer. How often that may happen is bounded: what kills every worker that it
meets must come to an end.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from scheduler.domain.request import BegunAnswer

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
        is_sent: the worker can be asked about it.
        has_begun: something of this attempt has reached the reader.
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
        self.is_sent = False
        self.has_begun = False
        self._early: dict[int, TokenFrame] = {}
        self._token_ids = {answer.index: list(answer.token_ids) for answer in body.wanted_answers}
        self._open = set(self._token_ids)

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

    @property
    def may_move(self) -> bool:
        """Whether another worker may be tried: once without a token yet, once amid the answer."""
        return not self.body.begun if self.has_begun else self.num_attempts == 1

    def moved_body(self) -> RequestBody:
        """What another worker has to answer: what was asked, or the rest of it."""
        begun = [
            BegunAnswer(index=index, token_ids=tuple(self._token_ids[index]))
            for index in sorted(self._open)
        ]
        return self.body.model_copy(
            update={
                "request_id": f"{self.id}-{self.num_attempts + 1}",
                "begun": tuple(begun) if self.has_begun else (),
            }
        )

    def note(self, frame: TokenFrame) -> None:
        """Remember what the reader gets."""
        self.has_begun = True
        self._token_ids[frame.index].extend(frame.token_ids)

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
