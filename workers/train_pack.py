"""One or more training examples of one job, laid end to end: the unit that runs forward and back.

tokens     |<- example 0 ->|<- example 1 ->| ... |
forward    |<---- num_forward_tokens ---->|            windows, first to last
backward   layer num_backward_layers .. below, all tokens or ranges last to first

A token attends within its own example only, so the gradient is that of the examples apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from workers.activations import ActivationSpec, LayerActivations, SaveLevel
from workers.attention import Extent


@dataclass(frozen=True, slots=True)
class PackTokens:
    """The examples of a pack, concatenated.

    Attributes:
        token_ids: (T,) int64.
        positions: (T,) position of each token in its own example.
        targets: (T,) the token to predict from each token; 0 at an example's last.
        weights: (T,) float32 loss weight of that prediction; 0 at an example's last.
        bounds: starts of the examples, and T at the end.
    """

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    weights: Tensor
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, examples: list[tuple[list[int], list[float]]]) -> PackTokens:
        """Concatenate (token ids, weight of predicting each token) pairs."""
        tokens, positions, targets, weights, bounds = [], [], [], [], [0]
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
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return self.bounds[-1]

    @property
    def total_weight(self) -> float:
        """Sum of the loss weights."""
        return float(self.weights.sum())

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
            first
            for first, last in pairwise(self.bounds)
            if max(first, start) < min(last, stop)
        ]


@dataclass(slots=True)
class LossSums:
    """Sums over target tokens; a mean is taken only where they are reported."""

    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0
    targets: int = 0

    def add(self, other: LossSums) -> None:
        """Add another's sums."""
        self.loss += other.loss
        self.correct += other.correct
        self.weight += other.weight
        self.targets += other.targets


@dataclass(slots=True)
class TrainPack:
    """A pack on its way through forward windows and backward units.

    Attributes:
        trains: False for a validation pack, which keeps K/V only and has no backward.
        grad_out: (T, hidden) gradient at the output of layer `next_backward_layer`; made by the
            loss of each forward window, then carried down.
        grad_kv: key and value gradients of the layer in work, while its token ranges run.
        range_stop: tokens [range_stop, T) of that layer are done.
    """

    tokens: PackTokens
    level: SaveLevel
    layers: list[LayerActivations]
    grad_out: Tensor
    next_backward_layer: int
    range_stop: int
    trains: bool = True
    num_forward_tokens: int = 0
    grad_kv: tuple[Tensor, Tensor] | None = None
    grad_below: Tensor | None = None
    sums: LossSums = field(default_factory=LossSums)

    @classmethod
    def allocate(
        cls,
        tokens: PackTokens,
        spec: ActivationSpec,
        num_layers: int,
        level: SaveLevel,
        device: torch.device,
        trains: bool = True,
    ) -> TrainPack:
        """A fresh pack with its buffers; a validation pack keeps K and V only."""
        names = spec.names(level) if trains else ["k", "v"]
        hidden = spec.shapes["x"][0]
        count = tokens.num_tokens
        return cls(
            tokens=tokens,
            level=level,
            layers=[LayerActivations(spec, names, count, device) for _ in range(num_layers)],
            grad_out=torch.zeros(count if trains else 0, hidden, dtype=spec.dtype, device=device),
            next_backward_layer=num_layers - 1,
            range_stop=count,
            trains=trains,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all examples."""
        return self.tokens.num_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose forward is still to come."""
        return self.num_tokens - self.num_forward_tokens

    @property
    def num_backward_layers(self) -> int:
        """Layers whose backward is still to come; 0 for validation."""
        return self.next_backward_layer + 1 if self.trains else 0

    @property
    def is_done(self) -> bool:
        """Whether neither forward nor backward work is left."""
        return self.num_uncomputed_tokens == 0 and self.num_backward_layers == 0
