"""The decision for one engine step: which tokens run. Ints and strings, so that it travels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """`count` tokens of an inference sequence from position `start`.

    Attributes:
        num_dropped: tokens before it that the cache does not hold any more.
    """

    sequence_id: str
    start: int
    count: int
    num_dropped: int = 0
    adapter: str = ""

    @property
    def num_pairs(self) -> int:
        """Pairs of a query of the span and a key that it sees."""
        num_before = self.start - self.num_dropped
        return self.count * num_before + self.count * (self.count + 1) // 2


@dataclass(frozen=True, slots=True)
class WindowSpan:
    """`count` tokens of a job's pack from token `start`, forward through all layers.

    Attributes:
        num_pairs: pairs of a query of the window and a key that it sees.
    """

    job_id: str
    start: int
    count: int
    num_pairs: int = 0


@dataclass(frozen=True, slots=True)
class LaneUnits:
    """`count` units of one job's pack, in the order that the pack's cursor gives."""

    job_id: str
    count: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: a forward lane (spans and windows in one packed batch), and lanes of units.

    Attributes:
        beside: units that begin beside the packed forward, on a share of the machine; they may
            outlast the step.
        is_beside: units run beside the packed forward, begun now or by a step before.
        units: units that run after it, on all of it.
        fresh_blocks: blocks handed out for this step, to be cleared before it runs.
        predicted_ms: what the latency law expects of the whole step.
        slack_ms: time that training may take; None when nobody waits for the step.
    """

    spans: tuple[Span, ...] = ()
    windows: tuple[WindowSpan, ...] = ()
    beside: tuple[LaneUnits, ...] = ()
    is_beside: bool = False
    units: tuple[LaneUnits, ...] = ()
    fresh_blocks: tuple[int, ...] = ()
    predicted_ms: float = 0.0
    slack_ms: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to run."""
        return not (self.spans or self.windows or self.beside or self.units)

    @property
    def num_inference_tokens(self) -> int:
        """Rows of inference."""
        return sum(span.count for span in self.spans)

    @property
    def num_window_tokens(self) -> int:
        """Rows of training in the packed forward."""
        return sum(window.count for window in self.windows)
