"""What an evaluation measures, on what, against whom, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

Contender: TypeAlias = Literal["candidate", "current", "base"]
Means: TypeAlias = Mapping[str, float | None]  # by the grader's name; None where nothing was graded

CONTENDERS: tuple[Contender, ...] = ("candidate", "current", "base")


class GraderChoice(BaseModel):
    """One grader with its options, under a name that rules can refer to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="Unique in its evaluation.")
    type: str = Field(description="The registered name.")
    config: dict[str, Any] = Field(default_factory=dict)


class PromotionRule(BaseModel):
    """One bound on one grader's mean: `at_least` or `at_most` what it is compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grader: str = Field(max_length=64, description="The grader's name in this evaluation.")
    comparison: Literal["at_least", "at_most"] = Field(
        description="Which side of the bound is good."
    )
    against: Literal["current", "base"] | None = Field(
        None, description="Whose mean is the bound; left out, `margin` alone is."
    )
    margin: float = Field(
        0.0, allow_inf_nan=False, description="Added to the bound; below 0 lowers it."
    )


class EvaluationPlan(BaseModel):
    """How to evaluate a version, whichever it will be. Never changes.

    Attributes:
        file: id of the file whose rows are asked.
        current: name of the model to compare with; None for what the version's adapter answers
            with when the evaluation starts.
        max_rows: only so many rows from the file's start are asked.
        max_answer_tokens: longest answer.
        rules: if there are any and all hold, the version becomes live.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    graders: tuple[GraderChoice, ...]
    current: str | None = None
    max_rows: int
    max_answer_tokens: int
    rules: tuple[PromotionRule, ...] = ()


class ContenderReport(BaseModel):
    """What one model reached."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="A base model, or the name of one version.")
    means: dict[str, float | None] = Field(description="By the grader's name.")


class EvaluationReport(BaseModel):
    """What an evaluation found, and what followed.

    Attributes:
        reasons: why the version must not become live.
        promoted: whether it did; None where no rules were given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int
    contenders: dict[Contender, ContenderReport]
    reasons: tuple[str, ...] = ()
    promoted: bool | None = None
