"""Where a training pack stands, and the next thing to run on it: ints only.

tokens    |<-- num_forward_tokens -->|<- window ->|   forward windows, first to last
layers of the window: `window_layer` is the next to run
backward: layer `backward_layer`, tokens [0, range_stop) of it are still to come

A layer runs over all its ranges before the layer below. A window-outer pack turns that around:
a range runs through all its layers, computed again first, before the range to its left.

Unit shapes follow from the pack alone, never from the clock: how many units a step runs is the
scheduler's choice, their shape is not, so a run without inference repeats itself bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate, chain, pairwise


class Direction(StrEnum):
    """Which way a unit carries its rows through a layer."""

    FORWARD = "forward"
    LOSS = "loss"
    RECOMPUTE = "recompute"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class Unit:
    """One layer, or the loss after the last one, over tokens [start, stop) of a pack.

    Attributes:
        num_pairs: pairs of a query of the range and a key that it sees.
    """

    direction: Direction
    layer: int
    start: int
    stop: int
    num_pairs: int = 0

    @property
    def num_tokens(self) -> int:
        """Rows of the unit."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class PackCursor:
    """Progress of one pack.

    Attributes:
        trains: False for a validation pack: forward only.
        window_tokens: size of a forward window that runs apart from inference.
        range_tokens: size of a backward token range.
        loss_tokens: size of a piece of the loss.
        is_window_outer: ranges outside, layers inside, each range computed again.
        num_loss_tokens: tokens whose loss is known; it is taken once all are forward, because the
            vocabulary's weights are read for every piece of it.
        window_stop: end of the window in work; equals num_forward_tokens when none is.
        recompute_layer: next layer to compute again for the range in work.
        pairs_before: for each token, query-key pairs of all tokens before it; one more at the end.
    """

    num_tokens: int
    num_layers: int
    trains: bool
    window_tokens: int
    range_tokens: int
    loss_tokens: int
    is_window_outer: bool = False
    num_forward_tokens: int = 0
    num_loss_tokens: int = 0
    window_stop: int = 0
    window_layer: int = 0
    recompute_layer: int = 0
    backward_layer: int
    range_stop: int
    pairs_before: tuple[int, ...] = field(repr=False)

    @classmethod
    def begin(
        cls,
        num_tokens: int,
        num_layers: int,
        *,
        trains: bool,
        window_tokens: int,
        range_tokens: int,
        loss_tokens: int | None = None,
        is_window_outer: bool = False,
        bounds: tuple[int, ...] | None = None,
    ) -> PackCursor:
        """A pack of which nothing has run; its loss comes in windows unless told otherwise.

        `bounds` are the starts of its examples, and its end; by default it is a single example.
        """
        positions = chain.from_iterable(
            range(1, stop - start + 1) for start, stop in pairwise(bounds or (0, num_tokens))
        )
        return cls(
            num_tokens=num_tokens,
            num_layers=num_layers,
            trains=trains,
            window_tokens=window_tokens,
            range_tokens=range_tokens,
            loss_tokens=loss_tokens or window_tokens,
            is_window_outer=is_window_outer and trains,
            backward_layer=num_layers - 1 if trains else -1,
            range_stop=num_tokens,
            pairs_before=tuple(accumulate(positions, initial=0)),
        )

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose forward is not complete."""
        return self.num_tokens - self.num_forward_tokens

    @property
    def is_suspended(self) -> bool:
        """Whether a window stands between two layers."""
        return self.window_layer > 0

    @property
    def has_begun(self) -> bool:
        """Whether anything of it has run."""
        return self.num_forward_tokens > 0 or self.is_suspended

    @property
    def has_begun_backward(self) -> bool:
        """Whether a unit has added to the job's gradient, or may have."""
        is_below = self.backward_layer < self.num_layers - 1 or self.recompute_layer > 0
        return self.trains and (is_below or self.range_stop < self.num_tokens)

    @property
    def is_done(self) -> bool:
        """Whether neither forward nor backward work is left."""
        return self.num_loss_tokens == self.num_tokens and self.backward_layer < 0

    def num_pairs(self, start: int, stop: int) -> int:
        """Query-key pairs of tokens [start, stop)."""
        return self.pairs_before[stop] - self.pairs_before[start]

    def next_unit(self) -> Unit | None:
        """The only unit that may run next; None when all is done."""
        if self.num_uncomputed_tokens > 0:
            start = self.num_forward_tokens
            stop = (
                self.window_stop
                if self.is_suspended
                else min(start + self.window_tokens, self.num_tokens)
            )
            return self._unit(Direction.FORWARD, self.window_layer, start, stop)
        if self.num_loss_tokens < self.num_tokens:
            start = self.num_loss_tokens
            stop = min(start + self.loss_tokens, self.num_tokens)
            return Unit(Direction.LOSS, self.num_layers - 1, start, stop)
        if self.backward_layer < 0:
            return None
        start = max(0, self.range_stop - self.range_tokens)
        if self.is_window_outer and self.recompute_layer < self.num_layers:
            return self._unit(Direction.RECOMPUTE, self.recompute_layer, start, self.range_stop)
        return self._unit(Direction.BACKWARD, self.backward_layer, start, self.range_stop)

    def after(self, unit: Unit) -> PackCursor:
        """The cursor once `next_unit()` has run."""
        assert unit == self.next_unit()
        if unit.direction is Direction.LOSS:
            return replace(self, num_loss_tokens=unit.stop)
        if unit.direction is Direction.RECOMPUTE:
            return replace(self, recompute_layer=unit.layer + 1)
        if unit.direction is Direction.BACKWARD:
            return self._after_range(unit) if self.is_window_outer else self._after_layer(unit)
        if unit.layer + 1 == self.num_layers:
            return self.after_window(unit.stop - unit.start)
        return replace(self, window_layer=unit.layer + 1, window_stop=unit.stop)

    def after_window(self, count: int) -> PackCursor:
        """The cursor once `count` more tokens have gone through all layers."""
        stop = self.num_forward_tokens + count
        assert stop <= self.num_tokens
        return replace(self, num_forward_tokens=stop, window_stop=stop, window_layer=0)

    def _unit(self, direction: Direction, layer: int, start: int, stop: int) -> Unit:
        return Unit(direction, layer, start, stop, self.num_pairs(start, stop))

    def _after_range(self, unit: Unit) -> PackCursor:
        if unit.layer > 0:
            return replace(self, backward_layer=unit.layer - 1)
        if unit.start == 0:
            return replace(self, range_stop=0, backward_layer=-1)
        last_layer = self.num_layers - 1
        return replace(self, range_stop=unit.start, recompute_layer=0, backward_layer=last_layer)

    def _after_layer(self, unit: Unit) -> PackCursor:
        if unit.start > 0:
            return replace(self, range_stop=unit.start)
        return replace(self, backward_layer=unit.layer - 1, range_stop=self.num_tokens)
