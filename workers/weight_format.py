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

NO_FORMAT = "none"
EVERYTHING = slice(None)
BLOCK_STEP = 128  # a block of inputs begins where a group of them does
BLOCK_WEIGHTS = {"cpu": 1 << 20, "cuda": 1 << 26}  # widened at once: what a cache, a card holds


class QuantizedWeight(ABC):
    """One matrix (out_features, in_features) that never changes, in few bits.

    Attributes:
        dtype: of what `dequantize` returns, and of the inputs of products.
        kernel: multiplies in place of torch; None where the machine has none for it.
    """

    kernel: CodedProduct | None = None

    def __init__(self, weight: Tensor) -> None:
        self.shape = weight.shape
        self.dtype = weight.dtype

    @classmethod
    @abstractmethod
    def of(cls, weight: Tensor) -> Self:
        """Quantize a matrix, on the device where it lies.

        Raises:
            InvalidInput: the format has no room for its shape.
        """

    @property
    @abstractmethod
    def held(self) -> tuple[Tensor, ...]:
        """All tensors that are kept."""

    @abstractmethod
    def dequantize(self, outputs: slice = EVERYTHING, inputs: slice = EVERYTHING) -> Tensor:
        """A block of the matrix that products stand for; `inputs` begins at a BLOCK_STEP."""

    @property
    def num_bytes(self) -> int:
        """Memory that is held."""
        return sum(tensor.nbytes for tensor in self.held)

    def linear(self, x: Tensor) -> Tensor:
        """X @ W.T: (rows, out_features)."""
        if self.kernel is not None:
            return self.kernel.multiply(x, is_transposed=False)
        outputs, inputs = self.shape
        blocks = self._blocks(outputs, inputs)
        return torch.cat([x @ self.dequantize(outputs=block).T for block in blocks], dim=1)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Grad @ W: (rows, in_features)."""
        if self.kernel is not None:
            return self.kernel.multiply(grad, is_transposed=True)
        outputs, inputs = self.shape
        blocks = self._blocks(inputs, outputs)
        return torch.cat([grad @ self.dequantize(inputs=block) for block in blocks], dim=1)

    def _blocks(self, length: int, across: int) -> Iterator[slice]:
        """Parts of one dimension, so that little of the matrix is wide at a time."""
        room = BLOCK_WEIGHTS[self.held[0].device.type] // across
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
