"""The C++ products of bf16 rows with a matrix that lies in codes of few bits."""

from __future__ import annotations

from ctypes import Structure, byref, c_bool, c_int, c_int64, c_void_p
from typing import Self

import torch
from torch import Tensor

from workers.kernels.cpu_kernels import cpu_kernels_for, panel_outputs
from workers.kernels.native import library
from workers.kernels.weight_codes import WeightCodes

WHOLE_ROW_BITS = 62  # no input is beyond the first group


class CodedMatrix(Structure):
    """The fields of `CodedMatrix` in `codes.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "zeros")),
        *((name, c_int64) for name in ("outputs", "inputs", "groups", "group_bits")),
    )


class CodedProduct:
    """Both products with one matrix."""

    def __init__(self, codes: WeightCodes) -> None:
        self.shape = (len(codes.codes), codes.inputs)
        self._codes = codes
        self._function = getattr(library(), f"multiply_{codes.kind}")
        self._function.argtypes = (
            *(c_void_p, c_void_p, c_int64, c_bool),
            *(c_void_p, c_void_p, c_int),
        )
        self._function.restype = None
        outputs, groups = codes.scales_OG.shape
        group_bits = WHOLE_ROW_BITS if groups == 1 else codes.group.bit_length() - 1
        self._matrix = CodedMatrix(outputs=outputs, inputs=codes.inputs, groups=groups)
        self._matrix.group_bits = group_bits
        for name, tensor in zip(("codes", "scales", "zeros"), codes.tensors, strict=False):
            setattr(self._matrix, name, tensor.data_ptr())

    @classmethod
    def try_of(cls, weight: Tensor, codes: WeightCodes) -> Self | None:
        """The products; None where the kernels do not cover the weight's device, dtype or shape.

        A row that is more than one group must have groups of a power of two.
        """
        if weight.dtype is not torch.bfloat16 or cpu_kernels_for(weight) is None:
            return None
        if codes.group % panel_outputs() or len(weight) % 2:
            return None
        return cls(codes)

    def multiply(self, x: Tensor, *, is_transposed: bool) -> Tensor:
        """X @ W.T, or x @ W where `is_transposed`: a row for each of `x`."""
        x, num_threads = x.contiguous(), torch.get_num_threads()
        columns = self.shape[1] if is_transposed else self.shape[0]
        y = x.new_empty(len(x), columns)
        panels = x.new_empty(num_threads, x.shape[1], panel_outputs())
        self._function(
            *(byref(self._matrix), x.data_ptr(), len(x), is_transposed),
            *(panels.data_ptr(), y.data_ptr(), num_threads),
        )
        return y
