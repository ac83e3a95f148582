"""fp8: floats of 4 exponent and 3 mantissa bits, one scale per output."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torchao.quantization import Float8Tensor

from workers.kernels.weight_codes import WeightCodes
from workers.weight_format import EVERYTHING, WEIGHT_FORMATS, QuantizedWeight

LEAST_PEAK = 1e-30  # below it a row counts as zeros, whose scale would be 0 and its codes NaN


@WEIGHT_FORMATS.register("fp8")
class Fp8Weight(QuantizedWeight):
    """Weights w / scale as float8_e4m3fn; an output's scale is its largest |w| / 448."""

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """See QuantizedWeight."""
        quantized = Float8Tensor.from_hp(weight.float(), hp_value_lb=LEAST_PEAK)
        return cls(weight, WeightCodes("fp8", quantized.qdata, quantized.scale))

    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """See QuantizedWeight."""
        scales = self.codes.scales_OG[outputs]
        return (self.codes.codes[outputs, inputs].to(scales.dtype) * scales).to(self.dtype)
