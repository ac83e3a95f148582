"""What callers ask for, and when their tokens came."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Load:
    """What the callers do.

    Attributes:
        num_streams: callers, each sending its next request when the last one is answered.
        num_adapters: adapters that they take turns with; 0 is the bare base.
    """

    num_streams: int
    num_adapters: int


@dataclass(slots=True)
class RequestTimes:
    """When a request was sent, and when each of its tokens came.

    Attributes:
        is_first: sent when its phase began, together with those of all other streams.
    """

    sent_s: float
    is_first: bool = False
    token_s: list[float] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return (self.token_s[0] - self.sent_s) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Mean time of the tokens after the first."""
        return (self.token_s[-1] - self.token_s[0]) * 1e3 / (len(self.token_s) - 1)


@dataclass(frozen=True, slots=True)
class StopRule:
    """When a phase has measured enough: after `seconds` and `requests`, but by `max_s` at last."""

    seconds: float
    requests: int = 0
    max_s: float = 0.0

    def is_met(self, elapsed_s: float, num_requests: int) -> bool:
        """Whether to stop now."""
        enough = elapsed_s >= self.seconds and num_requests >= self.requests
        return enough or elapsed_s >= max(self.seconds, self.max_s)
