"""One file per way to grade what a model did with a row."""

from scheduler.grader import GRADERS

__all__ = ["GRADERS"]

GRADERS.discover(__name__)
