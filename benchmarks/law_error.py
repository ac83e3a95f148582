"""The latency law's error, beside what no law could predict: the noise of identical steps.

Error: |predicted - real| / real of steps that nothing interrupted. Noise: |real - median| / median
over steps of one shape, in shapes that came at least MIN_REPEATS times within a phase. Both are
medians over steps. The ratio is taken over the same steps: those whose shape repeats.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from benchmarks.spread import median, percentile
from benchmarks.step_record import Shape, StepRecord

MIN_REPEATS = 5


def law_figures(phases: Iterable[Sequence[StepRecord]]) -> dict[str, float | int]:
    """Error and noise over some phases of one kind; shapes are compared within a phase only."""
    steps, repeated, noise = [], [], []
    for phase in phases:
        whole = [step for step in phase if step.is_uninterrupted and step.step_ms > 0]
        steps += whole
        for group in groups_of(whole):
            repeated += group
            noise += repeat_noise([step.step_ms for step in group])
    errors = [relative_error(step) for step in repeated]
    return {
        "steps": len(steps),
        "error_p50": median([relative_error(step) for step in steps]),
        "error_p90": percentile([relative_error(step) for step in steps], 0.9),
        "bias_p50": median([(step.predicted_ms - step.step_ms) / step.step_ms for step in steps]),
        "repeated_steps": len(repeated),
        "repeated_error_p50": median(errors),
        "repeated_error_p90": percentile(errors, 0.9),
        "noise_p50": median(noise),
        "noise_p90": percentile(noise, 0.9),
        "error_over_noise": median(errors) / median(noise) if noise else float("nan"),
    }


def groups_of(steps: Sequence[StepRecord]) -> list[list[StepRecord]]:
    """Steps of equal shape, where there are enough of them."""
    by_shape: dict[Shape, list[StepRecord]] = defaultdict(list)
    for step in steps:
        by_shape[step.shape].append(step)
    return [group for group in by_shape.values() if len(group) >= MIN_REPEATS]


def repeat_noise(times_ms: Sequence[float]) -> list[float]:
    """How far each time is from the median of all, relative to it."""
    middle = median(times_ms)
    return [abs(time_ms - middle) / middle for time_ms in times_ms]


def relative_error(step: StepRecord) -> float:
    """How far the prediction was off, relative to the real time."""
    return abs(step.predicted_ms - step.step_ms) / step.step_ms
