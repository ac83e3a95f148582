"""A frozen linear layer: y = x @ W.T + b, and the gradient of its input, dx = dy @ W.

Where the machine has kernels for it, W is kept as panels both ways round; elsewhere as the plain
matrix. A quantized W is kept once, and both products are its own.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from workers.kernels.cpu_kernels import CpuKernels, PanelWeights, cpu_kernels_for
from workers.weight_format import QuantizedWeight


class FrozenLinear:
    """Weights of one linear layer that never change."""

    def __init__(self, weight: Tensor | QuantizedWeight, bias: Tensor | None = None) -> None:
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._kernels: CpuKernels | None = None
        self._forward: PanelWeights | None = None
        self._backward: PanelWeights | None = None
        self._weight: Tensor | None = None
        self._quantized: QuantizedWeight | None = None
        if isinstance(weight, QuantizedWeight):
            self._quantized = weight
        else:
            self._lay_out(weight)

    def _lay_out(self, weight: Tensor) -> None:
        self._kernels = cpu_kernels_for(weight)
        self._forward = PanelWeights.try_of(weight)
        self._backward = PanelWeights.try_of(weight.T)
        self._weight = None if self._forward and self._backward else weight

    @property
    def num_parameters(self) -> int:
        """Parameters of the layer."""
        return self.out_features * self.in_features + (0 if self.bias is None else len(self.bias))

    @property
    def weight(self) -> Tensor:
        """The plain matrix, (out_features, in_features); a copy where it is kept otherwise."""
        if self._quantized is not None:
            return self._quantized.dequantize()
        if self._weight is not None:
            return self._weight
        assert self._forward is not None
        return self._forward.matrix()

    @property
    def num_bytes(self) -> int:
        """Memory that one forward pass reads."""
        if self._quantized is not None:
            return self._quantized.num_bytes
        held = self._weight if self._forward is None else self._forward.panels
        return 0 if held is None else held.nbytes

    @property
    def panels(self) -> PanelWeights | None:
        """The forward weight as kernels stream it, where it is kept so."""
        return self._forward if self._kernels is not None else None

    @property
    def transposed_panels(self) -> PanelWeights | None:
        """The weight of `input_grad` as kernels stream it, where it is kept so."""
        return self._backward if self._kernels is not None else None

    def __call__(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Output of the layer, (rows, out_features); added to `into`, in place, where given."""
        if self._kernels is not None and self._forward is not None:
            return self._kernels.linear(x, self._forward, self.bias, into)
        if self._quantized is not None:
            return self._quantized.linear(x, self.bias, into)
        assert self._weight is not None
        if into is not None and self.bias is None:
            return into.addmm_(x, self._weight.T)
        y = F.linear(x, self._weight, self.bias)
        return y if into is None else into.add_(y)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Gradient of the input, (rows, in_features), from that of the output."""
        if self._kernels is not None and self._backward is not None:
            return self._kernels.linear(grad, self._backward, None, None)
        if self._quantized is not None:
            return self._quantized.input_grad(grad)
        assert self._weight is not None
        return grad @ self._weight
