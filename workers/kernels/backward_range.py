"""What the backward kernel of a decoder layer reads and writes: the structs of its header."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p
from typing import ClassVar

from workers.kernels.cpu_kernels import MAX_PROJECTIONS, AttentionShape, KeySource

NUM_LINEARS = 4


class Run(Structure):
    """Rows [start, stop) with one adapter: a row of segments' RunTable."""

    _fields_ = (
        *((name, c_int64) for name in ("start", "stop", "column", "rank", "targets", "middle")),
        ("middles", c_void_p),
    )


class TermSums(Structure):
    """Where the gradients of one linear's adapter are summed; null: they are not wanted."""

    _fields_ = (
        ("shrink", c_void_p),
        *((name, c_void_p * MAX_PROJECTIONS) for name in ("expand", "middle")),
    )


class BackwardRange(Structure):
    """A token range of a pack in one layer."""

    KEPT: ClassVar = ("x", "heads", "q", "attn", "x_mid", "gate_up", "lse")
    SCRATCH: ClassVar = (
        *("activated", "grad_activated", "grad_gate_up", "normed", "grad_normed"),
        *("grad_attn", "grad_q", "grad_qkv"),
    )
    ADAPTER_SCRATCH: ClassVar = (
        *("shrunk", "grad_middled", "middled", "grad_shrunk"),
        *("grad_rows", "panels"),
    )
    _fields_ = (
        *(("hidden", c_int64), ("inner", c_int64), ("shape", AttentionShape)),
        *(("eps", c_float), ("is_first", c_int32)),
        *((name, c_void_p) for name in ("cosine", "sine", "positions")),
        *(("run", Run), ("sums", TermSums * NUM_LINEARS), ("source", KeySource)),
        *(("spans", c_void_p), ("num_spans", c_int64), ("next", c_int64), ("first", c_int64)),
        *((name, c_void_p) for name in (*KEPT, "grad", "grad_k", "grad_v")),
        *((name, c_void_p) for name in (*SCRATCH, *ADAPTER_SCRATCH)),
    )
