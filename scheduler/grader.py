"""Graders: what one model did with one row of a file -> a grade, and grades -> their mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from scheduler.domain.registry import PluginConfig, Registry

if TYPE_CHECKING:
    from scheduler.domain.evaluation import Contender

TrialPart: TypeAlias = Literal["answer", "scores"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What one model did with one row.

    Attributes:
        answer: what it wrote, greedily.
        reference: what the row says it should have written.
        logprobs: natural log-probability of each token of the reference, given those before it.
        hits: for each token of the reference, whether the model held it the likeliest.
        rivals: what `current` and `base` did with the same row.
    """

    answer: str = ""
    reference: str = ""
    logprobs: tuple[float, ...] = ()
    hits: tuple[bool, ...] = ()
    rivals: Mapping[Contender, Trial] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grade:
    """A sum and the number of things summed, so that a mean over rows weighs each thing alike."""

    total: float = 0.0
    count: int = 0

    def __add__(self, other: Grade) -> Grade:
        return Grade(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float | None:
        """The mean; None where nothing was graded."""
        return self.total / self.count if self.count else None


class Grader(ABC):
    """One way to grade, with one configuration.

    Attributes:
        reads: the part of a trial it needs: the generated answer, or the scores of the reference.
    """

    class Config(PluginConfig):
        """Options of the grader."""

    reads: ClassVar[TrialPart]

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def grade(self, trial: Trial) -> Grade:
        """Grade one trial."""


class AnswerGrader(Grader):
    """A grader whose verdict on an answer is yes or no."""

    reads = "answer"

    def grade(self, trial: Trial) -> Grade:
        """See Grader: 1 for yes, 0 for no; each row counts once."""
        return Grade(float(self.accepts(trial)), 1)

    @abstractmethod
    def accepts(self, trial: Trial) -> bool:
        """Whether the answer is right."""


GRADERS: Registry[Grader] = Registry("grader")
