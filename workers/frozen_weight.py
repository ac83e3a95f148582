"""How the matrix of a frozen linear is held: plain, or in panels that a CPU's kernels stream.

`QuantizedWeight` is a third way, in fewer bits.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from workers.kernels.cpu_kernels import CpuKernels, PanelWeights, cpu_kernels_for


class FrozenWeight(Protocol):
    """A matrix W (out_features, in_features) that never changes, and both products with it."""

    @property
    def shape(self) -> torch.Size:
        """(out_features, in_features)."""

    @property
    def num_bytes(self) -> int:
        """Memory that one forward pass reads."""

    def matrix(self) -> Tensor:
        """The plain matrix; a copy where it is held otherwise."""

    def linear(self, x: Tensor, bias: Tensor | None = None, into: Tensor | None = None) -> Tensor:
        """X @ W.T + bias: (rows, out_features); added to `into`, in place, where given."""

    def input_grad(self, grad: Tensor) -> Tensor:
        """Grad @ W: (rows, in_features)."""


class PlainMatrix:
    """The matrix as it came."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.shape = weight.shape

    @property
    def num_bytes(self) -> int:
        """See FrozenWeight."""
        return self._weight.nbytes

    def matrix(self) -> Tensor:
        """See FrozenWeight."""
        return self._weight

    def linear(self, x: Tensor, bias: Tensor | None = None, into: Tensor | None = None) -> Tensor:
        """See FrozenWeight."""
        if into is not None and bias is None:
            return into.addmm_(x, self._weight.T)
        y = F.linear(x, self._weight, bias)
        return y if into is None else into.add_(y)

    def input_grad(self, grad: Tensor) -> Tensor:
        """See FrozenWeight."""
        return grad @ self._weight


class PanelMatrix:
    """Panels both ways round, so that either product streams them.

    Attributes:
        panels: of the matrix.
        transposed_panels: of its transpose; None where the kernels do not cover that.
    """

    def __init__(self, kernels: CpuKernels, panels: PanelWeights, weight: Tensor) -> None:
        self._kernels = kernels
        self.shape = weight.shape
        self.panels = panels
        self.transposed_panels = PanelWeights.try_of(weight.T)
        self._plain = None if self.transposed_panels is not None else PlainMatrix(weight)

    @classmethod
    def try_of(cls, weight: Tensor) -> PanelMatrix | None:
        """A matrix in panels; None where the machine has no kernels for it."""
        kernels, panels = cpu_kernels_for(weight), PanelWeights.try_of(weight)
        return None if kernels is None or panels is None else cls(kernels, panels, weight)

    @property
    def num_bytes(self) -> int:
        """See FrozenWeight."""
        return self.panels.panels.nbytes

    def matrix(self) -> Tensor:
        """See FrozenWeight."""
        return self.panels.matrix()

    def linear(self, x: Tensor, bias: Tensor | None = None, into: Tensor | None = None) -> Tensor:
        """See FrozenWeight."""
        return self._kernels.linear(x, self.panels, bias, into)

    def input_grad(self, grad: Tensor) -> Tensor:
        """See FrozenWeight."""
        if self._plain is not None:
            return self._plain.input_grad(grad)
        assert self.transposed_panels is not None
        return self._kernels.linear(grad, self.transposed_panels, None, None)


def held(weight: Tensor) -> PanelMatrix | PlainMatrix:
    """A matrix as its device multiplies it fastest."""
    return PanelMatrix.try_of(weight) or PlainMatrix(weight)
