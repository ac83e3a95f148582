"""fp8: floats of 4 exponent and 3 mantissa bits, one scale per output."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torchao.quantization import Float8Tensor

from workers.kernels.cpu_codes import CodedProduct
from workers.weight_format import EVERYTHING, WEIGHT_FORMATS, QuantizedWeight

LEAST_PEAK = 1e-30  # below it a row counts as zeros, whose scale would be 0 and its codes NaN


@WEIGHT_FORMATS.register("fp8")
class Fp8Weight(QuantizedWeight):
    """Weights w / scale as float8_e4m3fn; an output's scale is its largest |w| / 448."""

    def __init__(self, weight: Tensor, codes: Tensor, scales: Tensor) -> None:
        super().__init__(weight)
        self.codes_OI = codes
        self.scales_O1 = scales
        self.kernel = CodedProduct.try_of("fp8", weight, codes, scales)

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """See QuantizedWeight."""
        quantized = Float8Tensor.from_hp(weight.float(), hp_value_lb=LEAST_PEAK)
        return cls(weight, quantized.qdata, quantized.scale)

    @property
    def held(self) -> tuple[Tensor, ...]:
        """See QuantizedWeight."""
        return self.codes_OI, self.scales_O1

    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """See QuantizedWeight."""
        scales = self.scales_O1[outputs]
        return (self.codes_OI[outputs, inputs].to(scales.dtype) * scales).to(self.dtype)
