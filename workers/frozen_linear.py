"""A frozen linear layer: y = x @ W.T + b, and the gradient of its input, dx = dy @ W.

Where the machine has panel kernels, W is kept as panels both ways round, each in bf16 if that is
exact (together the memory of one float32 matrix); elsewhere as the plain matrix.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.kernels.panel_gemm import PanelWeights, panel_linear


class FrozenLinear:
    """Weights of one linear layer that never change."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._forward = PanelWeights.try_of(weight)
        self._backward = PanelWeights.try_of(weight.T) if self._forward else None
        self._weight = None if self._forward and self._backward else weight

    @property
    def num_parameters(self) -> int:
        """Parameters of the layer."""
        return self.out_features * self.in_features + (0 if self.bias is None else len(self.bias))

    @property
    def num_bytes(self) -> int:
        """Memory that one forward pass reads."""
        held = self._weight if self._forward is None else self._forward.panels
        return 0 if held is None else held.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        """Output of the layer: (rows, out_features)."""
        if self._forward is None:
            assert self._weight is not None
            return F.linear(x, self._weight, self.bias)
        y = panel_linear(x, self._forward)
        return y if self.bias is None else y.add_(self.bias)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Gradient of the input, (rows, in_features), from that of the output."""
        if self._backward is None:
            assert self._weight is not None
            return grad @ self._weight
        return panel_linear(grad, self._backward)
