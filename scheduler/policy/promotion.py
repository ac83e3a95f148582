"""Whether a new version may become `live`: a job's rules over the means of its evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scheduler.domain.evaluation import Contender, Means, PromotionRule

# A bound computed by adding a margin is off by the rounding of that sum.
ROUNDING = 1e-9


def reasons_against(
    rules: Iterable[PromotionRule], means: Mapping[Contender, Means]
) -> tuple[str, ...]:
    """Why the candidate may not become live; empty if every rule holds.

    A mean that is missing breaks a rule, except that there is no `current` before the first
    version: then `base` stands in, which is what callers had until now.
    """
    reasons = (_reason_against(rule, means) for rule in rules)
    return tuple(reason for reason in reasons if reason is not None)


def _reason_against(rule: PromotionRule, means: Mapping[Contender, Means]) -> str | None:
    mine = means["candidate"].get(rule.grader)
    bound = _bound(rule, means)
    if mine is None or bound is None:
        return f"{rule.grader}: nothing was graded."
    ahead = mine - bound if rule.comparison == "at_least" else bound - mine
    if ahead >= -ROUNDING:  # also false for NaN
        return None
    side = rule.comparison.replace("_", " ")
    return f"{rule.grader} is {mine:.6g}; it must be {side} {bound:.6g}."


def _bound(rule: PromotionRule, means: Mapping[Contender, Means]) -> float | None:
    if rule.against is None:
        return rule.margin
    rival = means[rule.against] if rule.against in means else means["base"]
    mean = rival.get(rule.grader)
    return None if mean is None else mean + rule.margin
