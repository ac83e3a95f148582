"""One or more training examples of one job, laid end to end: the unit that runs forward and back.

tokens     |<- example 0 ->|<- example 1 ->| ... |
forward    |<- window ->|<- window ->|                first to last, all layers or one by one
backward   layer by layer, last to first; in each, token ranges last to first

A token attends within its own example only, so the gradient is that of the examples apart.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import Tensor

from scheduler.policy.pack_cursor import PackCursor
from workers.activations import LayerActivations, SaveLevel
from workers.attention import Extent
from workers.device_copy import copy_to
from workers.pack_layout import PackLayout
from workers.training_memory import Loan


@dataclass(frozen=True, slots=True)
class PackTokens:
    """The examples of a pack, concatenated.

    Attributes:
        token_ids: (T,) int64.
        positions: (T,) position of each token in its own example.
        targets: (T,) the token to predict from each token; 0 at an example's last.
        weights: (T,) float32 loss weight of that prediction; 0 at an example's last.
        bounds: starts of the examples, and T at the end.
        trained: tokens whose weight is not 0, ascending; known without asking a device.
    """

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    bounds: tuple[int, ...]
    trained: tuple[int, ...]

    @classmethod
    def of(cls, examples: list[tuple[list[int], list[float]]]) -> PackTokens:
        """Concatenate (token ids, weight of predicting each token) pairs."""
        tokens: list[int] = []
        positions: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        bounds = [0]
        for ids, token_weights in examples:
            tokens += ids
            positions += range(len(ids))
            targets += [*ids[1:], 0]
            weights += [*token_weights[1:], 0.0]
            bounds.append(len(tokens))
        return cls(
            torch.tensor(tokens),
            torch.tensor(positions),
            torch.tensor(targets),
            torch.tensor(weights, dtype=torch.float32),
            tuple(bounds),
            tuple(place for place, weight in enumerate(weights) if weight),
        )

    def to(self, device: torch.device) -> PackTokens:
        """The same on `device`."""
        return replace(
            self,
            token_ids=copy_to(self.token_ids, device),
            positions=copy_to(self.positions, device),
            targets=copy_to(self.targets, device),
            weights=copy_to(self.weights, device),
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return self.bounds[-1]

    @property
    def total_weight(self) -> float:
        """Sum of the loss weights."""
        return float(self.weights.sum())

    def trained_rows(self, start: int, stop: int) -> list[int]:
        """The trained tokens inside [start, stop), counted from `start`."""
        first, last = bisect_left(self.trained, start), bisect_left(self.trained, stop)
        return [token - start for token in self.trained[first:last]]

    def extents(self, start: int, stop: int) -> list[Extent]:
        """The pieces of examples inside tokens [start, stop); rows count from `start`."""
        pieces = []
        for first, last in pairwise(self.bounds):
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                pieces.append(Extent(begin - start, end - begin, begin - first))
        return pieces

    def key_starts(self, start: int, stop: int) -> list[int]:
        """First token of the example of each of `extents(start, stop)`."""
        return [
            first for first, last in pairwise(self.bounds) if max(first, start) < min(last, stop)
        ]


@dataclass(frozen=True, slots=True)
class PackWork:
    """A pack to run: forward and back, or forward only to validate."""

    tokens: PackTokens
    trains: bool


@dataclass(slots=True)
class LossSums:
    """Sums over target tokens; a mean is taken only where they are reported."""

    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0
    tokens: int = 0

    def add(self, other: LossSums) -> None:
        """Add another's sums."""
        self.loss += other.loss
        self.correct += other.correct
        self.weight += other.weight
        self.tokens += other.tokens


@dataclass(slots=True)
class TrainPack:
    """A pack on its way through forward windows and backward units.

    Attributes:
        cursor: what has run, and what comes next.
        loan: the memory of `layers` and `grad_out`.
        hidden: rows of a window between two layers, forward or again.
        grad_out: (T, hidden) gradient at the output of the layer that is next in backward, carried
            down in place; before the loss is taken, the rows after the last layer.
        loss_sums: (3,) float64: loss, correct and weight of the tokens whose loss has been taken.
        grad_kv: by layer, sums of key and value gradients, while token ranges add to them.
        range_layers: all activations of the range in work of a window-outer pack, by layer.
    """

    tokens: PackTokens
    cursor: PackCursor
    layout: PackLayout
    loan: Loan
    layers: list[LayerActivations]
    grad_out: Tensor
    loss_sums: Tensor
    hidden: Tensor | None = None
    grad_kv: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    range_layers: list[LayerActivations] = field(default_factory=list)

    @classmethod
    def within(
        cls, loan: Loan, layout: PackLayout, tokens: PackTokens, cursor: PackCursor
    ) -> TrainPack:
        """A fresh pack whose buffers lie in borrowed memory."""
        memory = loan.memory()
        grad_out, layers = layout.cut(memory)
        return cls(
            tokens=tokens.to(memory.device),
            cursor=cursor,
            layout=layout,
            loan=loan,
            layers=layers,
            grad_out=grad_out,
            loss_sums=torch.zeros(3, dtype=torch.float64, device=memory.device),
        )

    @property
    def level(self) -> SaveLevel:
        """What the pack keeps."""
        return self.layout.level

    def drop_saves(self, num_lasting_blocks: int) -> int:
        """Keep layer inputs only from here on; returns how many blocks are free again."""
        for layer in self.layers:
            layer.drop(self.layout.dispensable)
        self.layout = replace(self.layout, level=SaveLevel.INPUTS)
        return self.loan.shrink(num_lasting_blocks)

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return self.tokens.num_tokens

    def read_sums(self) -> LossSums:
        """Sums of a pack all of whose losses have been taken; waits for its device."""
        loss, correct, weight = self.loss_sums.tolist()
        return LossSums(loss, correct, weight, self.num_tokens)

    def keep_hidden(self, start: int, rows: Tensor) -> None:
        """Keep rows after the last layer until their loss is taken."""
        self.grad_out[start : start + len(rows)] = rows
