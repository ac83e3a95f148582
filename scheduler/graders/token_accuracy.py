"""The share of the reference's tokens that the model held the likeliest, teacher forced."""

from __future__ import annotations

from scheduler.grader import GRADERS, Grade, Grader, Trial


@GRADERS.register("token_accuracy")
class TokenAccuracy(Grader):
    """The mean is over tokens, not over rows."""

    reads = "scores"

    def grade(self, trial: Trial) -> Grade:
        """See Grader."""
        return Grade(sum(trial.hits), len(trial.hits))
