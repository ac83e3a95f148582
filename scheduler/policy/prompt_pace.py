"""How much of a prompt without targets a step computes, so that callers with targets are not late.

They decode in the same step and wait for all of it. A dozen rows cost a decode step next to
nothing, so that much is always computed, and the prompt comes to its end.
"""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain.plan import Span
from scheduler.policy.latency import ForwardShape, LatencyLaw
from scheduler.policy.training import affordable_tokens

MIN_PROMPT_TOKENS = 16


def paced_tokens(
    law: LatencyLaw, spans: tuple[Span, ...], next_spans: tuple[Span, ...], slack_ms: float
) -> int:
    """Tokens of each of `next_spans`, which advance alike, that fit into `slack_ms`.

    Args:
        law: of packed forwards.
        spans: what the step holds already.
        next_spans: the best-effort prompts of one group, with the most tokens they may have.
        slack_ms: how much longer the step may become.
    """
    without_ms = law.forward_ms(ForwardShape.of(spans, ()))

    def extra_ms(count: int) -> float:
        added = tuple(replace(span, count=count) for span in next_spans)
        return law.forward_ms(ForwardShape.of(spans + added, ())) - without_ms

    most = next_spans[0].count
    return max(min(most, MIN_PROMPT_TOKENS), affordable_tokens(slack_ms, most, extra_ms))
