"""Weights of frozen linears in fewer bits than they are multiplied in; one file each.

torchao decides what is stored; how it is multiplied is ours, because training also needs the
product with the weight the other way round. Formats are looked up, and torchao is imported, only
where a worker asks for one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Self

import torch
from torch import Tensor

from scheduler.domain.errors import InvalidInput
from scheduler.domain.registry import Registry
from workers.kernels.cpu_codes import CodedProduct
from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.weight_codes import WeightCodes

NO_FORMAT = "none"
EVERYTHING = slice(None)
BLOCK_STEP = 128  # a block of inputs begins where a group of them does
BLOCK_WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 26}  # widened at once: what a cache, a card holds


class QuantizedWeight(ABC):
    """One matrix (out_features, in_features) that never changes, in few bits.

    Attributes:
        dtype: of what `dequantize` returns, and of the inputs of products.
        codes: all that is kept.
    """

    def __init__(self, weight: Tensor, codes: WeightCodes) -> None:
        self.shape = weight.shape
        self.dtype = weight.dtype
        self.codes = codes
        self._cpu_product = CodedProduct.try_of(weight, codes)

    @classmethod
    @abstractmethod
    def of(cls, weight: Tensor) -> Self:
        """Quantize a matrix, on the device where it lies.

        Raises:
            InvalidInput: the format has no room for its shape.
        """

    @abstractmethod
    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """A block of the matrix that products stand for; `inputs` begins at a BLOCK_STEP."""

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(tensor.nbytes for tensor in self.codes.tensors)

    def matrix(self) -> Tensor:
        """All of it, see `dequantize`."""
        return self.dequantize()

    def linear(self, x: Tensor, bias: Tensor | None = None, into: Tensor | None = None) -> Tensor:
        """X @ W.T + bias: (rows, out_features); added to `into`, in place, where given.

        A GPU multiplies few rows with the codes as they lie; many with blocks that are widened.
        """
        kernels = gpu_kernels_for(x)
        if kernels is not None and kernels.covers_codes(self.codes, len(x)):
            return kernels.coded_linear(x, self.codes, bias, into)
        y = self._product(x)
        y = y if bias is None else y.add_(bias)
        return y if into is None else into.add_(y)

    def _product(self, x: Tensor) -> Tensor:
        if self._cpu_product is not None:
            return self._cpu_product.multiply(x, is_transposed=False)
        outputs, inputs = self.shape
        blocks = self._blocks(outputs, inputs)
        return torch.cat([x @ self.dequantize(outputs=block).T for block in blocks], dim=1)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Grad @ W: (rows, in_features)."""
        if self._cpu_product is not None:
            return self._cpu_product.multiply(grad, is_transposed=True)
        outputs, inputs = self.shape
        blocks = self._blocks(inputs, outputs)
        return torch.cat([grad @ self.dequantize(inputs=block) for block in blocks], dim=1)

    def _blocks(self, length: int, across: int) -> Iterator[slice]:
        """Parts of one dimension, so that little of the matrix is wide at a time."""
        room = BLOCK_WEIGHTS[self.codes.codes.device.type] // across
        step = max(BLOCK_STEP, room // BLOCK_STEP * BLOCK_STEP)
        for start in range(0, length, step):
            yield slice(start, min(start + step, length))


WEIGHT_FORMATS: Registry[QuantizedWeight] = Registry("weight format")


def find_format(name: str) -> type[QuantizedWeight] | None:
    """The format of that name; None for the weights as they are.

    Raises:
        UnknownPlugin: no file in `weight_formats/` has registered the name.
        InvalidInput: torchao is not installed.
    """
    if name == NO_FORMAT:
        return None
    if find_spec("torchao") is None:
        raise InvalidInput(
            f"Weights in {name} need torchao: pip install 'tandem-llm[quantized]'.",
            param="weight_format",
        )
    import_module("workers.weight_formats")
    return WEIGHT_FORMATS[name]
