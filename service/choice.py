"""One answer as it grows: tokens in, text out.

Text that may still become a stop string is held back, and with it the log-probabilities of its
tokens, so that a stop string leaves no trace in the answer.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scheduler.domain.request import FinishReason
from scheduler.text.detokenizer import Detokenizer
from scheduler.text.stops import StopMatcher

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from scheduler.domain.messages import TokenFrame, TokenLogprobs
    from scheduler.text.tokenizer import ChatTokenizer

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token of the visible text.

    Attributes:
        token_id: the token.
        offset: characters of the answer before it.
        score: its log-probability and the alternatives; None if not asked for.
    """

    token_id: int
    offset: int
    score: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one token made visible; `text` may be empty."""

    text: str
    tokens: tuple[ScoredToken, ...]


class Choice:
    """One of the answers to one prompt.

    Args:
        tokenizer: of the base model.
        stops: stop strings.
        end_ids: tokens that end an answer and are not part of its text.
        continues_text: the answer goes on from the prompt's text, as in text completion.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        stops: Sequence[str],
        end_ids: Collection[int],
        *,
        continues_text: bool,
    ) -> None:
        self.finish_reason: Finish | None = None
        self.stopped_early = False
        self.num_tokens = 0
        self._detokenizer = Detokenizer(tokenizer, continues_text=continues_text)
        self._matcher = StopMatcher(stops)
        self._end_ids = end_ids
        self._num_decoded = 0
        self._num_visible = 0
        self._held: deque[ScoredToken] = deque()

    def push(self, frame: TokenFrame) -> Iterator[Piece]:
        """Take what one step added; yields one piece per token, then nothing after the end."""
        last = len(frame.token_ids) - 1
        scores = frame.logprobs or (None,) * len(frame.token_ids)
        for position, (token_id, score) in enumerate(zip(frame.token_ids, scores, strict=True)):
            finish = frame.finish_reason if position == last else None
            yield self._push_token(token_id, score, finish)
            if self.finish_reason is not None:
                return
        if not frame.token_ids and frame.finish_reason is not None:
            yield self._end(frame.finish_reason, "")

    def _push_token(
        self, token_id: int, score: TokenLogprobs | None, finish: FinishReason | None
    ) -> Piece:
        self.num_tokens += 1
        if finish is FinishReason.STOP and token_id in self._end_ids:
            return self._end(finish, "")
        text = self._detokenizer.push(token_id)
        self._held.append(ScoredToken(token_id, self._num_decoded, score))
        if finish is not None:
            return self._end(finish, text)
        return self._show(text)

    def _show(self, text: str) -> Piece:
        self._num_decoded += len(text)
        visible, stopped = self._matcher.feed(text)
        if stopped:
            self.finish_reason = "stop"
            self.stopped_early = True
        return self._release(visible)

    def _end(self, finish: FinishReason, text: str) -> Piece:
        shown = self._show(text + self._detokenizer.flush())
        if self.finish_reason is None:
            self.finish_reason = "length" if finish is FinishReason.LENGTH else "stop"
            rest = self._release(self._matcher.flush(), everything=True)
            return Piece(shown.text + rest.text, shown.tokens + rest.tokens)
        return shown

    def _release(self, visible: str, *, everything: bool = False) -> Piece:
        """Let out text, and the tokens that began before its end."""
        self._num_visible += len(visible)
        tokens = []
        while self._held and (everything or self._held[0].offset < self._num_visible):
            tokens.append(self._held.popleft())
        return Piece(visible, tuple(tokens))
