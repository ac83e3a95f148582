"""At which lengths the K/V of one sequence are compressed, and what a policy has to see before."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvCadence:
    """Lengths counted in tokens that are computed, so that whoever computes them again finds them.

    tokens    |<------- first ------->|<--- interval --->|<--- interval --->| ...
    watched        |<- first_watched->|       |<-watched>|       |<-watched>|

    Attributes:
        first: tokens after which K/V are compressed for the first time.
        first_watched: last tokens of those whose queries are seen.
        interval: tokens from one compression to the next; None: there is only one.
        watched: last tokens of an interval whose queries are seen.
    """

    first: int
    first_watched: int
    interval: int | None = None
    watched: int = 0

    def next_after(self, num_tokens: int) -> int | None:
        """The length above `num_tokens` at which K/V are compressed next; None: never again."""
        if num_tokens < self.first:
            return self.first
        if self.interval is None:
            return None
        return num_tokens + self.interval - (num_tokens - self.first) % self.interval

    def is_due(self, num_tokens: int) -> bool:
        """Whether K/V of so many tokens are compressed."""
        return self.next_after(num_tokens - 1) == num_tokens

    def sees(self, start: int, count: int) -> bool:
        """Whether queries of `count` tokens from `start` are seen; none are of two stretches."""
        end = self.next_after(start)
        if end is None:
            return False
        return start + count > end - (self.first_watched if end == self.first else self.watched)

    def stretch(self, start: int) -> int:
        """Tokens from the compression before token `start`, or the first token, to the next."""
        if start < self.first:
            return self.first
        assert self.interval is not None
        return self.interval
