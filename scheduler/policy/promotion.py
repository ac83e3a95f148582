"""Whether a new version may become `live`: a job's rules over the means of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Contender: TypeAlias = Literal["candidate", "current", "base"]
Means: TypeAlias = Mapping[str, float | None]  # by the grader's name; None where nothing was graded

# A bound computed by adding a margin is off by the rounding of that sum.
ROUNDING = 1e-9


class PromotionRule(BaseModel):
    """One bound on one grader's mean: `at_least` or `at_most` what it is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grader: str = Field(description="The grader's name in this evaluation.")
    comparison: Literal["at_least", "at_most"] = Field(
        description="Which side of the bound is good."
    )
    against: Literal["current", "base"] | None = Field(
        None, description="Whose mean is the bound; left out, `margin` alone is."
    )
    margin: float = Field(
        0.0, allow_inf_nan=False, description="Added to the bound; below 0 lowers it."
    )

    def broken_by(self, means: Mapping[Contender, Means]) -> str | None:
        """Say why the candidate breaks the rule; None if it keeps it.

        A mean that is missing breaks the rule, except that there is no `current` before the first
        version: then `base` stands in, which is what callers had until now.
        """
        mine = means["candidate"].get(self.grader)
        bound = self._bound(means)
        if mine is None or bound is None:
            return f"{self.grader}: nothing was graded."
        ahead = mine - bound if self.comparison == "at_least" else bound - mine
        if ahead >= -ROUNDING:  # also false for NaN
            return None
        side = self.comparison.replace("_", " ")
        return f"{self.grader} is {mine:.6g}; it must be {side} {bound:.6g}."

    def _bound(self, means: Mapping[Contender, Means]) -> float | None:
        if self.against is None:
            return self.margin
        rival = means[self.against] if self.against in means else means["base"]
        mean = rival.get(self.grader)
        return None if mean is None else mean + self.margin


def reasons_against(rules: list[PromotionRule], means: Mapping[Contender, Means]) -> list[str]:
    """Why the candidate may not become live; empty if every rule holds."""
    broken = (rule.broken_by(means) for rule in rules)
    return [reason for reason in broken if reason is not None]
