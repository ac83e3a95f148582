"""The latency law: what a step will take, learnt while it runs.

A packed forward costs a fixed part, the GEMMs of its rows (a measured curve, since small batches
are bound by memory), and attention by kind. A unit of the training lane costs a fixed part, its
tokens (fewer products at the first layer, whose input needs no gradient), its attention, and more
right after a packed forward. Each has a fit of its own, and so have steps of single tokens where
the device replays them captured; predictions carry the fit's own mean error as a margin.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from scheduler.domain.plan import Span, WindowSpan
from scheduler.policy.least_squares import OnlineLeastSquares
from scheduler.policy.pack_cursor import Direction, Unit

UNIT_WORK = {  # relative to a forward of the same tokens, before anything is known
    Direction.FORWARD: 1.0,
    Direction.LOSS: 1.0,
    Direction.RECOMPUTE: 1.0,
    Direction.BACKWARD: 1.5,
}
FORWARD_PRIOR = [0.5, 1.0, 0.02, 0.001, 0.01, 0.02, 0.1, 0.1]


@dataclass(frozen=True, slots=True)
class RowCosts:
    """Measured milliseconds of all base GEMMs by number of rows, ascending."""

    rows: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, rows: int) -> float:
        """Cost of `rows` rows: linear between measured counts and beyond the last."""
        if rows == 0:
            return 0.0
        if len(self.rows) == 1:
            return self.ms[0] * rows / self.rows[0]
        right = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        x0, x1 = self.rows[right - 1], self.rows[right]
        y0, y1 = self.ms[right - 1], self.ms[right]
        return max(self.ms[0], y0 + (y1 - y0) * (rows - x0) / (x1 - x0))


@dataclass(frozen=True, slots=True)
class ForwardShape:
    """What the cost of a packed forward depends on.

    Attributes:
        num_rows: all rows.
        num_spans: inference spans and training windows.
        context_tokens: keys that single-token spans read.
        score_pairs: query-key pairs of longer spans and windows.
        num_window_rows: rows of training windows, whose activations are kept.
        num_adapters: different adapters, of spans and windows.
        begins_lane: units start beside it; until they do, they take the interpreter's time.
    """

    num_rows: int
    num_spans: int
    context_tokens: int
    score_pairs: int
    num_window_rows: int = 0
    num_adapters: int = 0
    begins_lane: bool = False

    @property
    def is_decode(self) -> bool:
        """Whether all its rows are single tokens of sequences."""
        return self.num_rows == self.num_spans and not self.num_window_rows

    @classmethod
    def of(cls, spans: tuple[Span, ...], windows: tuple[WindowSpan, ...]) -> ForwardShape:
        """The shape of a packed forward."""
        return cls(
            num_rows=sum(s.count for s in spans) + sum(w.count for w in windows),
            num_spans=len(spans) + len(windows),
            context_tokens=sum(s.num_pairs for s in spans if s.count == 1),
            score_pairs=sum(s.num_pairs for s in spans if s.count > 1)
            + sum(w.num_pairs for w in windows),
            num_window_rows=sum(w.count for w in windows),
            num_adapters=len({s.adapter for s in spans if s.adapter}) + len(windows),
        )


class LatencyLaw:
    """Predicts, and learns from, packed forwards and units.

    Args:
        costs: of the base model.
        num_layers: of the base model.
        captures_decode: steps of single tokens run captured: their fixed costs are others.
    """

    def __init__(self, costs: RowCosts, num_layers: int, *, captures_decode: bool = False) -> None:
        self.costs = costs
        per_token_layer = costs.at(costs.rows[-1]) / costs.rows[-1] / num_layers
        self._forward = OnlineLeastSquares(FORWARD_PRIOR)
        self._decode = OnlineLeastSquares(FORWARD_PRIOR) if captures_decode else self._forward
        self._units = {
            direction: OnlineLeastSquares([0.1 * work, work * per_token_layer, 0.0, 0.0, 0.0])
            for direction, work in UNIT_WORK.items()
        }

    def forward_ms(self, shape: ForwardShape) -> float:
        """Expected time of a packed forward, sampling included."""
        if shape.num_rows == 0:
            return 0.0
        floor = 0.5 * self.costs.at(shape.num_rows)
        return max(floor, self._fit(shape).predict(self._features(shape)))

    def unit_ms(self, unit: Unit, *, is_cold: bool = False) -> float:
        """Expected time of one unit; it is cold if it finds a packed forward in the caches."""
        return max(0.01, self._units[unit.direction].predict(unit_features(unit, is_cold=is_cold)))

    @property
    def unit_margin_ms(self) -> float:
        """What a run of units may take longer: the mean error of one, in the worst direction."""
        return max(fit.error for fit in self._units.values())

    def margin_ms(self, shape: ForwardShape) -> float:
        """Mean error of predictions for packed forwards of this kind."""
        return self._fit(shape).error

    def observe_forward(self, shape: ForwardShape, elapsed_ms: float) -> None:
        """Learn from a packed forward."""
        self._fit(shape).observe(self._features(shape), elapsed_ms)

    def observe_unit(self, unit: Unit, elapsed_ms: float, *, is_cold: bool = False) -> None:
        """Learn from a unit."""
        self._units[unit.direction].observe(unit_features(unit, is_cold=is_cold), elapsed_ms)

    def _fit(self, shape: ForwardShape) -> OnlineLeastSquares:
        return self._decode if shape.is_decode else self._forward

    def _features(self, shape: ForwardShape) -> list[float]:
        return [
            1.0,
            self.costs.at(shape.num_rows),
            float(shape.num_spans),
            shape.context_tokens / 1e3,
            shape.score_pairs / 1e3,
            float(shape.num_window_rows),
            float(shape.num_adapters),
            1.0 if shape.begins_lane else 0.0,
        ]


def unit_features(unit: Unit, *, is_cold: bool) -> list[float]:
    """What a unit's cost is linear in."""
    tokens = float(unit.num_tokens)
    return [
        1.0,
        tokens,
        unit.num_pairs / 1e3,
        tokens if unit.layer == 0 else 0.0,
        1.0 if is_cold else 0.0,
    ]
