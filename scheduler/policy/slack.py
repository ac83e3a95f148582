"""How long a step may last before a caller notices: per request, with credit.

A request's mean time per output token is what its target bounds. A request that ran ahead of its
target has earned time that a longer step may spend; one that waits for its first token, or is
behind, grants none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler.domain.request import Sequence

AIM = 0.94  # of a TPOT target: an arrival near the end of an answer cannot be made up for
MAX_STALL_TARGETS = 1.5  # no step is stretched by more than this many TPOT targets


@dataclass(frozen=True, slots=True)
class SloTargets:
    """Targets of a service class, in milliseconds; None: best effort."""

    ttft_ms: float | None
    tpot_ms: float | None


def token_slack_ms(sequence: Sequence, targets: SloTargets, now_s: float) -> float | None:
    """Time until the sequence's next token is late; None without target.

    0 before its first token if that has a target. If only the others have, the first one may come
    in this step, and the second is due a target later.
    """
    if sequence.first_token_s is None and targets.ttft_ms is not None:
        return 0.0
    if targets.tpot_ms is None:
        return None
    if sequence.first_token_s is None:
        return AIM * targets.tpot_ms
    due_s = sequence.first_token_s + sequence.num_output_tokens * AIM * targets.tpot_ms / 1e3
    return min((due_s - now_s) * 1e3, (1 + MAX_STALL_TARGETS) * targets.tpot_ms)


def step_slack_ms(
    sequences: Iterable[Sequence],
    classes: Mapping[str, SloTargets],
    now_s: float,
    inference_ms: float,
) -> float | None:
    """Time that a step may take beyond its inference part; None when nobody waits for it."""
    slacks = [
        token_slack_ms(sequence, classes[sequence.request.service_class], now_s)
        for sequence in sequences
    ]
    bound = [slack for slack in slacks if slack is not None]
    return max(0.0, min(bound) - inference_ms) if bound else None
