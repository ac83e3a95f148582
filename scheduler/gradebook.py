"""The grades of all contenders of one evaluation, added up over its rows."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from scheduler.domain.errors import InvalidInput, UnknownPlugin
from scheduler.grader import Grade, Grader, Trial, TrialPart
from scheduler.graders import GRADERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from scheduler.domain.evaluation import Contender, GraderChoice

Grades: TypeAlias = "dict[tuple[Contender, str], Grade]"  # by the grader's name


def make_grader(choice: GraderChoice, place: str = "graders") -> Grader:
    """The grader that is asked for.

    Args:
        choice: its registered name and its options.
        place: field of the request to blame.

    Raises:
        UnknownPlugin: no such grader.
        InvalidInput: an option is wrong.
    """
    try:
        kind = GRADERS[choice.type]
        return kind(kind.Config.model_validate(choice.config))
    except UnknownPlugin as error:
        raise UnknownPlugin(error.message, param=f"{place}.type") from None
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([place, "config", *(str(part) for part in first["loc"])])
        sentence = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise InvalidInput(f"{path!r}: {sentence}.", param=path) from None


class Gradebook:
    """Grades rows and keeps the sums.

    Args:
        choices: the graders, each under its own name.
        is_wanted: asked before each grade; nothing more is graded where it is not.
    """

    def __init__(
        self, choices: Iterable[GraderChoice], is_wanted: Callable[[], bool] = lambda: True
    ) -> None:
        self.num_rows = 0
        self._is_wanted = is_wanted
        self._graders = {choice.name: make_grader(choice) for choice in choices}
        self._sums: Grades = defaultdict(Grade)

    def reads(self, part: TrialPart) -> bool:
        """Whether a grader needs this part of a trial."""
        return any(grader.reads == part for grader in self._graders.values())

    def grade(self, trials: Mapping[Contender, Trial]) -> Grades:
        """Grade what all contenders did with one row; this may take time and keeps nothing."""
        rivals: dict[Contender, Trial] = {
            name: trial for name, trial in trials.items() if name != "candidate"
        }
        return {
            (contender, name): grader.grade(replace(trial, rivals=rivals))
            for contender, trial in trials.items()
            for name, grader in self._graders.items()
            if self._is_wanted()
        }

    def add(self, grades: Grades) -> None:
        """Add the grades of one row."""
        self.num_rows += 1
        for key, grade in grades.items():
            self._sums[key] += grade

    def means(self, contender: Contender) -> dict[str, float | None]:
        """The mean by each grader; None where nothing was graded or the sum is no finite number."""
        means = {name: self._sums[contender, name].mean for name in self._graders}
        return {
            name: None if mean is None or not math.isfinite(mean) else mean
            for name, mean in means.items()
        }
