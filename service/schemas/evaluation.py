"""Evaluations of versions, asked for and shown."""

from typing import Annotated, Literal

from pydantic import Field

from scheduler.domain.evaluation import Contender, ContenderReport, GraderChoice, PromotionRule
from service.schemas.adapter_order import FileId
from service.schemas.base import Body, Read
from service.schemas.options import Options

ModelName = Annotated[str, Field(min_length=1, max_length=512)]
Rules = Annotated[list[PromotionRule], Field(min_length=1, max_length=32)]


class GraderCreate(Body):
    """One grader."""

    type: str = Field(max_length=64, description="See graders in /v1/capabilities.")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="Left out: its type."
    )
    config: Options = Field(default_factory=dict, description="Options of the grader.")


class EvaluationOptions(Body):
    """How to evaluate."""

    graders: list[GraderCreate] = Field(min_length=1, max_length=16)
    current: ModelName | None = Field(
        None, description="The model to compare with; left out: what the adapter answers with."
    )
    max_rows: int = Field(1000, ge=1, le=10_000, description="Rows asked, from the file's start.")
    max_answer_tokens: int = Field(256, ge=1, le=4096, description="Longest answer.")


class EvaluationCreate(EvaluationOptions):
    """An evaluation of one version."""

    model: ModelName = Field(description="Any name of a version.")
    file: FileId = Field(description="Rows as of a training file.")
    promote_if: Rules | None = Field(
        None, description="The version becomes live if all of these hold."
    )


class PromoteIf(EvaluationOptions):
    """What a job's final version must show before the adapter's name answers."""

    file: FileId | None = Field(None, description="Left out: the job's validation file.")
    rules: Rules


class EvaluationRead(Read):
    """An evaluation and what it found."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    status: Literal["queued", "running", "succeeded", "failed"]
    adapter_id: str
    version: int = Field(description="The candidate.")
    job_id: str | None = Field(description="The job that had it evaluated at its end.")
    file: str
    graders: list[GraderChoice]
    promote_if: list[PromotionRule]
    num_rows: int | None = Field(description="Rows that were asked, once it has succeeded.")
    contenders: dict[Contender, ContenderReport] | None = Field(
        description="What each model reached; no `current` where there was none."
    )
    promoted: bool | None = Field(description="Whether it became live, where rules were given.")
    reasons: list[str] = Field(description="Why it did not.")
    created_at: int
    finished_at: int | None
    error: str | None
