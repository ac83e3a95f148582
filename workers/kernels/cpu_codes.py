"""The C++ products of bf16 rows with a matrix that lies in codes of few bits."""

from __future__ import annotations

from ctypes import Structure, byref, c_bool, c_int, c_int64, c_void_p
from typing import Self

import torch
from torch import Tensor

from workers.kernels.cpu_kernels import cpu_kernels_for, panel_outputs
from workers.kernels.native import library

WHOLE_ROW_BITS = 62  # no input is beyond the first group


class CodedMatrix(Structure):
    """The fields of `CodedMatrix` in `codes.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "scales", "zeros")),
        *((name, c_int64) for name in ("outputs", "inputs", "groups", "group_bits")),
    )


class CodedProduct:
    """Both products with one matrix.

    Args:
        kind: whose codes they are, as `exports.cpp` names them.
        shape: (out_features, in_features).
        held: codes, scales and, where the kind has them, zero points.
    """

    def __init__(self, kind: str, shape: tuple[int, int], held: tuple[Tensor, ...]) -> None:
        self.shape = shape
        self._held = held
        self._function = getattr(library(), f"multiply_{kind}")
        self._function.argtypes = (
            *(c_void_p, c_void_p, c_int64, c_bool),
            *(c_void_p, c_void_p, c_int),
        )
        self._function.restype = None
        groups = held[1].shape[1]
        group_bits = WHOLE_ROW_BITS if groups == 1 else (shape[1] // groups).bit_length() - 1
        self._matrix = CodedMatrix(outputs=shape[0], inputs=shape[1], groups=groups)
        self._matrix.group_bits = group_bits
        for name, tensor in zip(("codes", "scales", "zeros"), held, strict=False):
            setattr(self._matrix, name, tensor.data_ptr())

    @classmethod
    def try_of(cls, kind: str, weight: Tensor, *held: Tensor) -> Self | None:
        """The products; None where the kernels do not cover the weight's device, dtype or shape.

        Shapes:
            weight: (O, I), what the codes stand for.
            held: codes (O, ...), scales (O, groups) float32 and zeros like scales. A row that is
                more than one group has groups of a power of two.
        """
        outputs, inputs = weight.shape
        if weight.dtype is not torch.bfloat16 or cpu_kernels_for(weight) is None:
            return None
        if inputs // held[1].shape[1] % panel_outputs() or outputs % 2:
            return None
        return cls(kind, (outputs, inputs), tuple(tensor.contiguous() for tensor in held))

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
