"""The answer compared with the reference as text; OpenAI's `string_check` and its operations."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scheduler.grader import GRADERS, AnswerGrader, Trial


@GRADERS.register("string_check")
class StringCheck(AnswerGrader):
    """Equal, different, or containing, to the last blank."""

    class Config(AnswerGrader.Config):
        """Options of the comparison."""

        operation: Literal["eq", "ne", "like", "ilike"] = Field(
            "eq",
            description="Equal; different; contains the reference; contains it in any case.",
        )

    config: Config

    def accepts(self, trial: Trial) -> bool:
        """See AnswerGrader."""
        match self.config.operation:
            case "eq":
                return trial.answer == trial.reference
            case "ne":
                return trial.answer != trial.reference
            case "like":
                return trial.reference in trial.answer
            case "ilike":
                return trial.reference.casefold() in trial.answer.casefold()
