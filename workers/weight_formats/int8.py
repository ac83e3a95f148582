"""int8: one scale per output, symmetric."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from torchao.quantization import Int8Tensor
from torchao.quantization.granularity import PerRow

from workers.kernels.cpu_codes import CodedProduct
from workers.weight_format import EVERYTHING, WEIGHT_FORMATS, QuantizedWeight


@WEIGHT_FORMATS.register("int8")
class Int8Weight(QuantizedWeight):
    """Weights round(w / scale) in [-128, 127]; an output's scale is its largest |w| / 127.5."""

    def __init__(self, weight: Tensor, codes: Tensor, scales: Tensor) -> None:
        super().__init__(weight)
        self.codes_OI = codes
        self.scales_O1 = scales
        self.kernel = CodedProduct.try_of("int8", weight, codes, scales)

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """See QuantizedWeight."""
        quantized = Int8Tensor.from_hp(weight.float(), PerRow())
        return cls(weight, quantized.qdata, quantized.scale)

    @property
    def held(self) -> tuple[Tensor, ...]:
        """See QuantizedWeight."""
        return self.codes_OI, self.scales_O1

    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """See QuantizedWeight."""
        return (self.codes_OI[outputs, inputs] * self.scales_O1[outputs]).to(self.dtype)
