"""Whether the reference is likelier to the model than to a rival: the share of rows it wins."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from scheduler.grader import GRADERS, Grade, Grader, Trial

TIE = 0.5


@GRADERS.register("pairwise")
class Pairwise(Grader):
    """Both score the same tokens, so sums compare; before the first version `base` stands in."""

    class Config(Grader.Config):
        """Options of the comparison."""

        against: Literal["current", "base"] = Field("current", description="The rival.")

    config: Config
    reads = "scores"

    def grade(self, trial: Trial) -> Grade:
        """See Grader: 1 for a win, a half for a tie, 0 for a loss; each row counts once."""
        rival = trial.rivals.get(self.config.against) or trial.rivals["base"]
        ahead = math.fsum(trial.logprobs) - math.fsum(rival.logprobs)
        if math.isnan(ahead):
            return Grade(0.0, 1)
        return Grade(TIE if ahead == 0 else float(ahead > 0), 1)
