"""The figures of one phase: some callers, some jobs, for some seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import RequestTimes
from benchmarks.spread import percentiles, spread
from benchmarks.step_record import StepRecord


@dataclass(frozen=True, slots=True)
class PhaseResult:
    """What a phase gave.

    Attributes:
        requests: answered in the phase, without those that were sent all at once as it began.
    """

    seconds: float
    output_tokens_per_s: float
    train_tokens_per_s: float
    requests: list[RequestTimes]
    steps: list[StepRecord]

    @property
    def ttft_ms(self) -> list[float]:
        """Time to the first token of each request."""
        return [request.ttft_ms for request in self.requests]

    @property
    def tpot_ms(self) -> list[float]:
        """Mean time per output token of each request."""
        return [request.tpot_ms for request in self.requests]


def summary(rounds: Sequence[PhaseResult]) -> dict[str, object]:
    """Rates as medians of the rounds, latencies over all their requests, tokens by kind."""
    return {
        "output_tokens_per_s": spread([r.output_tokens_per_s for r in rounds]),
        "train_tokens_per_s": spread([r.train_tokens_per_s for r in rounds]),
        "ttft_ms": percentiles([v for r in rounds for v in r.ttft_ms]),
        "tpot_ms": percentiles([v for r in rounds for v in r.tpot_ms]),
        "seconds": sum(r.seconds for r in rounds),
        "tokens": tokens_by_kind([step for r in rounds for step in r.steps]),
    }


def tokens_by_kind(steps: Sequence[StepRecord]) -> dict[str, int]:
    """How many tokens of each kind the steps ran."""
    return {
        "steps": len(steps),
        "decode": sum(s.decode_tokens for s in steps),
        "prefill": sum(s.prefill_tokens for s in steps),
        "train_forward": sum(s.forward_tokens for s in steps),
        "train_backward_token_layers": sum(s.backward_token_layers for s in steps),
    }
