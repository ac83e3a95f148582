"""The answer searched for a pattern in time linear in its length, whatever the pattern (RE2)."""

from __future__ import annotations

import re2
from pydantic import Field, field_validator

from scheduler.grader import GRADERS, AnswerGrader, Trial

MAX_PATTERN_CHARS = 1000
MAX_MEMORY_BYTES = 1 << 20  # of one compiled pattern and its states


@GRADERS.register("regex")
class Regex(AnswerGrader):
    """Found anywhere in the answer; `^` and `$` bind it to the ends."""

    class Config(AnswerGrader.Config):
        """Options of the search."""

        pattern: str = Field(
            max_length=MAX_PATTERN_CHARS,
            description="In RE2's syntax: without back references and look-around.",
        )

        @field_validator("pattern")
        @classmethod
        def _compiles(cls, pattern: str) -> str:
            try:
                re2.compile(pattern, _options())
            except re2.error as error:
                raise ValueError(f"RE2 cannot read {pattern!r}: {error}.") from error
            return pattern

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._pattern = re2.compile(config.pattern, _options())

    def accepts(self, trial: Trial) -> bool:
        """See AnswerGrader."""
        return self._pattern.search(trial.answer) is not None


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False  # they are the caller's, not the operator's
    options.max_mem = MAX_MEMORY_BYTES
    options.never_capture = True  # where groups match takes far longer to find than whether
    return options
