"""The C++ kernels of KV compression as functions of tensors, one set for each storage dtype.

Sums are float32; the torch code beside each caller gives the same up to their rounding.

Shape suffixes: H query heads, K KV heads, N queries, T tokens, C centres, M tokens beside them,
D head_dim.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from workers.kernels.cpu_kernels import MAX_HEAD_DIM, NAMES, cpu_kernels, panel_outputs
from workers.kernels.native import library

KeysValues = tuple[Tensor, Tensor]
TINY = 1e-10


class AttendedKeys(Structure):
    """The fields of `AttendedKeys` in `compression.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("queries", "keys", "positions", "log_counts")),
        *((name, c_void_p) for name in ("sums", "scratch")),
        *((name, c_int64) for name in ("heads", "kv_heads", "dim", "num_queries", "num_keys")),
        *(("token_stride", c_int64), ("head_stride", c_int64)),
    )


class LikestCentres(Structure):
    """The fields of `LikestCentres` in `compression.h`."""

    _fields_ = (
        *((name, c_void_p) for name in ("row_keys", "row_values")),
        *((name, c_void_p) for name in ("centre_keys", "centre_values")),
        *((name, c_void_p) for name in ("row_key_scales", "row_value_scales")),
        *((name, c_void_p) for name in ("centre_key_scales", "centre_value_scales")),
        *((name, c_void_p) for name in ("slots", "likeness")),
        *((name, c_int64) for name in ("heads", "dim", "num_rows", "num_centres")),
        ("floor", c_float),
    )


class CpuCompression:
    """The library's functions for one storage dtype."""

    def __init__(self, loaded: ctypes.CDLL, dtype: torch.dtype) -> None:
        self._attended_keys = getattr(loaded, f"attended_keys_{NAMES[dtype]}")
        self._attended_keys.argtypes = (POINTER(AttendedKeys), c_int)
        self._likest_centres = getattr(loaded, f"likest_centres_{NAMES[dtype]}")
        self._likest_centres.argtypes = (POINTER(LikestCentres), c_int)
        for function in (self._attended_keys, self._likest_centres):
            function.restype = None

    def column_sums(
        self, q_HND: Tensor, k_KTD: Tensor, positions_N: Tensor, log_counts_KT: Tensor | None
    ) -> Tensor:
        """Attention that each key gets from all queries of a head, (H, T) float32.

        Args:
            q_HND: queries.
            k_KTD: keys.
            positions_N: the last key that each query sees.
            log_counts_KT: what is added to logits, float32; None: nothing.
        """
        q_HND, positions_N = q_HND.contiguous(), positions_N.to(torch.int32)
        if k_KTD.stride(2) != 1:
            k_KTD = k_KTD.contiguous()
        if log_counts_KT is not None:
            log_counts_KT = log_counts_KT.contiguous()
        (heads, num_queries, dim), (kv_heads, num_keys, _) = q_HND.shape, k_KTD.shape
        sums, num_threads = torch.empty(heads, num_keys), torch.get_num_threads()
        scratch = torch.empty(num_threads, num_keys, 2 * panel_outputs())
        self._attended_keys(
            byref(
                AttendedKeys(
                    *(each.data_ptr() for each in (q_HND, k_KTD, positions_N)),
                    None if log_counts_KT is None else log_counts_KT.data_ptr(),
                    *(sums.data_ptr(), scratch.data_ptr()),
                    *(heads, kv_heads, dim, num_queries, num_keys),
                    *(k_KTD.stride(1), k_KTD.stride(0)),
                )
            ),
            num_threads,
        )
        return sums

    def likest_centres(
        self, rows_KMD: KeysValues, centres_KCD: KeysValues, floor: float
    ) -> tuple[Tensor, Tensor]:
        """The centre of largest relu(cos of keys) * relu(cos of values), and that product.

        Args:
            rows_KMD: keys and values of the tokens that look for a centre.
            centres_KCD: those of the centres; at least one of each head.
            floor: a token whose product is less finds slot 0 with a product of 0.

        Returns:
            Indices into the centres, (K, M) int64, the first of equals; products, (K, M) float32.
        """
        sides = [each.contiguous() for each in (*rows_KMD, *centres_KCD)]
        scales = [_inverse_norms(side) for side in sides]
        heads, num_rows, dim = sides[0].shape
        slots = torch.empty(heads, num_rows, dtype=torch.int64)
        likeness = torch.empty(heads, num_rows)
        self._likest_centres(
            byref(
                LikestCentres(
                    *(each.data_ptr() for each in (*sides, *scales, slots, likeness)),
                    *(heads, dim, num_rows, sides[2].shape[1], floor),
                )
            ),
            torch.get_num_threads(),
        )
        return slots, likeness


def _inverse_norms(rows: Tensor) -> Tensor:
    """1 / norm along the last axis, float32; finite for zeros."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=-1, dtype=torch.float32)
    return norms.clamp(min=TINY).reciprocal()


@cache
def _compression(dtype: torch.dtype) -> CpuCompression | None:
    loaded = library()
    return None if loaded is None or cpu_kernels(dtype) is None else CpuCompression(loaded, dtype)


def cpu_compression_for(x: Tensor) -> CpuCompression | None:
    """The kernels for heads like `x` (..., D); None where the machine or the heads have none."""
    if x.device.type != "cpu" or x.shape[-1] % 2 or x.shape[-1] > MAX_HEAD_DIM:
        return None
    return _compression(x.dtype)
