"""How many requests kept their class's targets, with and without training beside them."""

from __future__ import annotations

from collections import Counter

from scheduler.domain.engine_stats import RequestSample, SloTotals
from scheduler.policy.slack import SloTargets


class SloTally:
    """Counts of ended requests by class, target, training and outcome.

    A request that ended without a token counts against its TTFT target once it has waited longer
    than that; one that ended before says nothing. A mean TPOT takes two tokens.
    """

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, bool, bool]] = Counter()

    def count(self, sample: RequestSample, targets: SloTargets) -> None:
        """Judge one ended request."""
        ttft_s = sample.ttft_s
        if targets.ttft_ms is not None:
            if ttft_s is not None:
                self._add(sample, "ttft", ttft_s * 1e3 <= targets.ttft_ms)
            elif sample.e2e_s * 1e3 > targets.ttft_ms:
                self._add(sample, "ttft", False)
        if targets.tpot_ms is not None and sample.mean_tpot_s is not None:
            self._add(sample, "tpot", sample.mean_tpot_s * 1e3 <= targets.tpot_ms)

    def totals(self) -> tuple[SloTotals, ...]:
        """Everything counted so far."""
        keys = sorted({key[:3] for key in self._counts})
        return tuple(
            SloTotals(
                service_class=service_class,
                target=target,
                training_active=training,
                num_within=self._counts[service_class, target, training, True],
                num_over=self._counts[service_class, target, training, False],
            )
            for service_class, target, training in keys
        )

    def _add(self, sample: RequestSample, target: str, is_within: bool) -> None:
        self._counts[sample.service_class, target, sample.training_active, is_within] += 1
