"""int4: groups of up to 128 inputs, each with a scale and a zero point, two weights in a byte."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor
from torchao.quantization import MappingType, choose_qparams_affine, quantize_affine

from scheduler.domain.errors import InvalidInput
from workers.kernels.weight_codes import WeightCodes
from workers.weight_format import BLOCK_STEP, EVERYTHING, WEIGHT_FORMATS, QuantizedWeight

MAX_GROUP, MIN_GROUP = 128, 16
MAX_CODE = 15


@WEIGHT_FORMATS.register("int4")
class Int4Weight(QuantizedWeight):
    """Weights (code - zero) * scale, codes and zeros in [0, 15].

    A group holds as many inputs as divide both their number and 128. In a byte the even input
    lies below the odd one.
    """

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """See QuantizedWeight."""
        outputs, inputs = weight.shape
        group = math.gcd(inputs, MAX_GROUP)
        if group < MIN_GROUP:
            raise InvalidInput(
                f"int4 needs a multiple of {MIN_GROUP} inputs; a matrix of the base has {inputs}.",
                param="weight_format",
            )
        wide, block, limits = weight.float(), (1, group), (torch.uint8, 0, MAX_CODE)
        scales, zeros = choose_qparams_affine(
            *(wide, MappingType.ASYMMETRIC, block, *limits),
            scale_dtype=torch.float32,
            zero_point_dtype=torch.uint8,
        )
        codes = quantize_affine(wide, block, scales, zeros, *limits)
        shape = (outputs, inputs // group)
        pairs = codes[:, 1::2] << 4 | codes[:, ::2]
        return cls(weight, WeightCodes("int4", pairs, scales.view(shape), zeros.view(shape)))

    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """See QuantizedWeight."""
        held, group = self.codes, self.codes.group
        assert held.zeros_OG is not None
        pairs = held.codes[outputs, _part(inputs, 2)]
        groups = (outputs, _part(inputs, group))
        codes = torch.stack((pairs & MAX_CODE, pairs >> 4), dim=2).view(len(pairs), -1, group)
        steps = codes.to(torch.int8) - held.zeros_OG[groups].to(torch.int8)[..., None]
        return (steps * held.scales_OG[groups][..., None]).flatten(1).to(self.dtype)


def _part(inputs: slice, size: int) -> slice:
    """The same inputs, counted in pieces of a size that divides BLOCK_STEP."""
    assert BLOCK_STEP % size == 0
    if inputs == EVERYTHING:
        return inputs
    return slice(inputs.start // size, inputs.stop // size)
