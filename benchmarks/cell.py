"""One co-serving cell: so many streams and a training job under a TPOT target, beside its halves.

eta = (output tokens/s both / inference only) + (training tokens/s both / training only)

Each round has halves of its own, measured directly before and after it; eta is the median over the
rounds, attainment is over the requests of all rounds, each held against its own round's targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load import RequestTimes
from benchmarks.phase import PhaseResult, summary
from benchmarks.spread import median, percentile, share, spread
from scheduler.policy.slack import SloTargets

TTFT_MS = 500.0  # the service's default target


@dataclass(frozen=True, slots=True)
class CellRound:
    """A co-serving phase, its halves, and the targets that it was held to."""

    both: PhaseResult
    inference: PhaseResult
    training: PhaseResult
    targets: SloTargets

    @property
    def shares(self) -> tuple[float, float]:
        """Share of the inference-only rate, share of the training-only rate."""
        return (
            share(self.both.output_tokens_per_s, self.inference.output_tokens_per_s),
            share(self.both.train_tokens_per_s, self.training.train_tokens_per_s),
        )


def targets_of(inference: PhaseResult, factor: float) -> SloTargets:
    """Targets as multiples of what inference alone gives.

    TPOT: of its median. TTFT: the service's default, or the same multiple of the p99 of inference
    alone where even that is not within the default.

    Raises:
        RuntimeError: nothing was answered, so there is nothing to take a multiple of.
    """
    if not inference.requests:
        raise RuntimeError(
            f"No request was answered in {inference.seconds:.0f} s of inference alone; this "
            "machine is too slow or too busy to measure on."
        )
    ttft_ms = percentile(inference.ttft_ms, 0.99)
    return SloTargets(max([TTFT_MS, factor * ttft_ms]), factor * median(inference.tpot_ms))


def attainment(met: Sequence[tuple[bool, bool]]) -> dict[str, float | int]:
    """Shares of requests within their TTFT target, their TPOT target, and both."""
    count = len(met)
    return {
        "requests": count,
        "ttft": share(sum(ttft for ttft, _ in met), count),
        "tpot": share(sum(tpot for _, tpot in met), count),
        "both": share(sum(ttft and tpot for ttft, tpot in met), count),
    }


def within(request: RequestTimes, targets: SloTargets) -> tuple[bool, bool]:
    """Whether a request met its TTFT and its TPOT target."""
    assert targets.ttft_ms is not None
    assert targets.tpot_ms is not None
    return request.ttft_ms <= targets.ttft_ms, request.tpot_ms <= targets.tpot_ms


def cell_figures(rounds: Sequence[CellRound]) -> dict[str, object]:
    """All figures of a cell."""
    output_shares, train_shares = zip(*(r.shares for r in rounds), strict=True)
    met = [within(request, r.targets) for r in rounds for request in r.both.requests]
    return summary([r.both for r in rounds]) | {
        "eta": spread([a + b for a, b in zip(output_shares, train_shares, strict=True)]),
        "output_share": spread(output_shares),
        "train_share": spread(train_shares),
        "attainment": attainment(met),
        "target_tpot_ms": spread([r.targets.tpot_ms or 0.0 for r in rounds]),
        "target_ttft_ms": spread([r.targets.ttft_ms or 0.0 for r in rounds]),
        "tpot_samples_ms": [v for r in rounds for v in r.both.tpot_ms],
        "alone": {
            "inference": summary([r.inference for r in rounds]),
            "training": summary([r.training for r in rounds]),
        },
    }
