"""What the benchmark keeps of every engine step: its shape, its time, and what was predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.domain.plan import StepPlan
from scheduler.policy.pack_cursor import Direction, Unit
from workers.engine_stats import EngineMeter

CONTEXT_STEP = 256  # keys: contexts this close together count as equal

Shape = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step.

    Attributes:
        shape: equal for steps that do the same work: spans, rows, windows, units, and the context
            of each kind to within CONTEXT_STEP keys a span.
        is_uninterrupted: whether nothing cut the lane of units short.
        forward_tokens: training tokens whose forward began as a unit, or ran as a window.
        backward_token_layers: training tokens times layers that ran backward.
    """

    shape: Shape
    step_ms: float
    predicted_ms: float
    is_uninterrupted: bool
    decode_tokens: int
    prefill_tokens: int
    forward_tokens: int
    backward_token_layers: int

    @classmethod
    def of(
        cls, plan: StepPlan, units: list[Unit], step_ms: float, beside: Sequence[Unit] = ()
    ) -> StepRecord:
        """Record a step that has run, in which the lane of the units `beside` ended."""
        decode = sum(span.count == 1 for span in plan.spans)
        ran = [*units, *beside]
        return cls(
            shape=step_shape(plan, units),
            step_ms=step_ms,
            predicted_ms=plan.predicted_ms,
            is_uninterrupted=len(units) == sum(lane.count for lane in plan.units),
            decode_tokens=decode,
            prefill_tokens=plan.num_inference_tokens - decode,
            forward_tokens=plan.num_window_tokens
            + sum(u.num_tokens for u in ran if u.direction is Direction.FORWARD and not u.layer),
            backward_token_layers=sum(
                u.num_tokens for u in ran if u.direction is Direction.BACKWARD
            ),
        )


def step_shape(plan: StepPlan, units: list[Unit]) -> Shape:
    """What a step's time should follow from."""
    context = sum(span.start for span in plan.spans if span.count == 1)
    spans = max(1, sum(span.count == 1 for span in plan.spans))
    return (
        plan.is_beside,
        len(plan.spans),
        context // (CONTEXT_STEP * spans),
        tuple((s.count, s.start // CONTEXT_STEP) for s in plan.spans if s.count > 1),
        tuple((w.count, w.start // CONTEXT_STEP) for w in plan.windows),
        tuple((u.direction.value, u.num_tokens, u.start // CONTEXT_STEP) for u in units),
    )


class RecordingMeter(EngineMeter):
    """The engine's meter, which also keeps every step of a phase."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[StepRecord] = []

    def count_step(
        self, plan: StepPlan, units: list[Unit], step_ms: float, beside: Sequence[Unit] = ()
    ) -> None:
        """See EngineMeter; and remember all of it."""
        super().count_step(plan, units, step_ms, beside)
        self.records.append(StepRecord.of(plan, units, step_ms, beside))


def trained_tokens(records: list[StepRecord], num_layers: int) -> float:
    """Training tokens of the steps: a third of one for its forward, the rest for its backward.

    Over a long time this is the number of tokens trained; over a short one it does not jump by a
    whole pack when a forward ends.
    """
    forward = sum(record.forward_tokens for record in records)
    backward = sum(record.backward_token_layers for record in records) / num_layers
    return (forward + 2 * backward) / 3
