"""Cross entropy of the reference, teacher forced; in nats per token."""

from __future__ import annotations

import math

from scheduler.grader import GRADERS, Grade, Grader, Trial


@GRADERS.register("loss")
class Loss(Grader):
    """The mean is over tokens, as a fine-tuning job's validation loss is."""

    reads = "scores"

    def grade(self, trial: Trial) -> Grade:
        """See Grader."""
        return Grade(-math.fsum(trial.logprobs), len(trial.logprobs))
