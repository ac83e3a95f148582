"""A frozen matrix as it lies in memory: codes of few bits, and what makes weights of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class WeightCodes:
    """Weights (code - zero) * scale, where a group of a row's inputs has one scale and zero.

    Everything is contiguous.

    Attributes:
        kind: how the C++ kernels call such codes.
        codes: (outputs, bytes of a row). Two codes share a byte where a group has a zero: the even
            input lies below the odd one.
        scales_OG: one for each output and group, float32.
        zeros_OG: like the scales, uint8; None where weights are code * scale.
    """

    kind: str
    codes: Tensor
    scales_OG: Tensor
    zeros_OG: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is held."""
        zeros = () if self.zeros_OG is None else (self.zeros_OG,)
        return self.codes, self.scales_OG, *zeros

    @property
    def codes_per_byte(self) -> int:
        """Inputs that share a byte."""
        return 1 if self.zeros_OG is None else 2

    @property
    def inputs(self) -> int:
        """Inputs of a row."""
        return self.codes.shape[1] * self.codes_per_byte

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.inputs // self.scales_OG.shape[1]
