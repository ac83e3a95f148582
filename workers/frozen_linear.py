"""A frozen linear layer: y = x @ W.T + b, and the gradient of its input, dx = dy @ W."""

from __future__ import annotations

from torch import Tensor

from workers.frozen_weight import FrozenWeight, PanelMatrix, held
from workers.kernels.cpu_kernels import PanelWeights


class FrozenLinear:
    """Weights of one linear layer that never change.

    Args:
        weight: (out_features, in_features), or that matrix as it is held already.
        bias: (out_features,).
    """

    def __init__(self, weight: Tensor | FrozenWeight, bias: Tensor | None = None) -> None:
        self._held: FrozenWeight = held(weight) if isinstance(weight, Tensor) else weight
        self.out_features, self.in_features = weight.shape
        self.bias = bias

    @property
    def num_parameters(self) -> int:
        """Parameters of the layer."""
        return self.out_features * self.in_features + (0 if self.bias is None else len(self.bias))

    @property
    def weight(self) -> Tensor:
        """The plain matrix, (out_features, in_features); a copy where it is held otherwise."""
        return self._held.matrix()

    @property
    def num_bytes(self) -> int:
        """Memory that one forward pass reads."""
        return self._held.num_bytes

    @property
    def panels(self) -> PanelWeights | None:
        """The forward weight as kernels stream it, where it is held so."""
        return self._held.panels if isinstance(self._held, PanelMatrix) else None

    @property
    def transposed_panels(self) -> PanelWeights | None:
        """The weight of `input_grad` as kernels stream it, where it is held so."""
        return self._held.transposed_panels if isinstance(self._held, PanelMatrix) else None

    def __call__(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Output of the layer, (rows, out_features); added to `into`, in place, where given."""
        return self._held.linear(x, self.bias, into)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Gradient of the input, (rows, in_features), from that of the output."""
        return self._held.input_grad(grad)
