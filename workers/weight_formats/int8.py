"""int8: one scale per output, symmetric."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torchao.quantization import Int8Tensor
from torchao.quantization.granularity import PerRow

from workers.kernels.weight_codes import WeightCodes
from workers.weight_format import EVERYTHING, WEIGHT_FORMATS, QuantizedWeight


@WEIGHT_FORMATS.register("int8")
class Int8Weight(QuantizedWeight):
    """Weights round(w / scale) in [-128, 127]; an output's scale is its largest |w| / 127.5."""

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """See QuantizedWeight."""
        quantized = Int8Tensor.from_hp(weight.float(), PerRow())
        return cls(weight, WeightCodes("int8", quantized.qdata, quantized.scale))

    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """See QuantizedWeight."""
        scales = self.codes.scales_OG[outputs]
        return (self.codes.codes[outputs, inputs] * scales).to(self.dtype)
