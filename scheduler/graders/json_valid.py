"""Whether the answer is one JSON document (RFC 8259: no NaN, no infinities)."""

from __future__ import annotations

import json
from typing import NoReturn

from scheduler.grader import GRADERS, AnswerGrader, Trial


@GRADERS.register("json_valid")
class JsonValid(AnswerGrader):
    """Blanks around the document are fine; other text is not."""

    def accepts(self, trial: Trial) -> bool:
        """See AnswerGrader; nesting deeper than the parser's stack counts as invalid."""
        try:
            # Numbers stay text: converting digits takes quadratic time, and Python bounds it.
            json.loads(trial.answer, parse_int=str, parse_float=str, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return False
        return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON.")
