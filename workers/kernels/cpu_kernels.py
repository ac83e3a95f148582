"""The C++ kernels as functions of tensors, one `CpuKernels` for each storage dtype.

Every function equals the torch code that stands beside its caller, up to rounding: sums are
float32. A row's result never depends on the rows beside it, to the last bit.

Shape suffixes: T rows, I in_features, O out_features, H query heads, K KV heads, D head_dim.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_bool, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from workers.kernels.native import cpu_flags, library
from workers.kernels.segments import LinearPlace, RunTable

MAX_PROJECTIONS = 3
MAX_HEAD_DIM = 256
MAX_GROUP = 16
NAMES = {torch.float32: "f32", torch.bfloat16: "bf16"}


class AdaptedLinear(Structure):
    """Arena matrices of one fused linear of one layer."""

    _fields_ = (
        ("index", c_int64),
        ("first_middle", c_int64),
        ("num_projections", c_int64),
        ("in_features", c_int64),
        ("out_features", c_int64),
        ("shrink", c_void_p),
        ("expand", c_void_p * MAX_PROJECTIONS),
        ("first_output", c_int64 * (MAX_PROJECTIONS + 1)),
    )


class KeySource(Structure):
    """Where the keys of spans lie; strides in elements, no tables for one buffer.

    With `heads`, (span, KV head) int64 quadruples: slots before the span's first query, first entry
    of the head's table, address and number of the log-counts of its first slots.
    """

    _fields_ = (
        ("k", c_void_p),
        ("v", c_void_p),
        ("tables", c_void_p),
        ("page_tokens", c_int64),
        ("page_stride", c_int64),
        ("head_stride", c_int64),
        ("token_stride", c_int64),
        ("heads", c_void_p),
    )


class AttentionShape(Structure):
    """Heads of one attention, its sliding window (0: none), elements between rows of queries."""

    _fields_ = (
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("window", c_int64),
        ("q_stride", c_int64),
    )


class LinearWeights(Structure):
    """Panels of one frozen linear, and the adapters beside it."""

    _fields_ = (
        ("panels", c_void_p),
        ("is_narrow", c_int64),
        ("bias", c_void_p),
        ("adapted", AdaptedLinear),
    )


class LayerWeights(Structure):
    """Everything frozen in one decoder layer; no head norms: null."""

    _fields_ = (
        *((name, c_void_p) for name in ("input_norm", "post_norm", "q_norm", "k_norm")),
        ("linears", LinearWeights * 4),
    )


class SpanGroup(Structure):
    """Spans that attend to keys of one place."""

    _fields_ = (
        ("source", KeySource),
        ("spans", c_void_p),
        ("num_spans", c_int64),
        ("next", c_int64),
    )


class Window(Structure):
    """Rows of a training pack, and where a layer's activations go; null: not kept."""

    KEPT: ClassVar = ("x", "heads", "q", "k", "v", "attn", "x_mid", "gate_up", "lse")
    _fields_ = (("row", c_int64), ("count", c_int64), *((name, c_void_p) for name in KEPT))


class CacheRows(Structure):
    """Rows of inference, and the pages that take their keys and values."""

    _fields_ = (
        *(("row", c_int64), ("count", c_int64), ("blocks", c_void_p), ("offsets", c_void_p)),
        *(("keys", c_void_p), ("values", c_void_p)),
        *(("page_tokens", c_int64), ("page_stride", c_int64)),
    )


class HeadRows(Structure):
    """Rows of compressed sequences, and the slots (row, KV head) that take their K and V."""

    _fields_ = (
        *(("row", c_int64), ("count", c_int64), ("slots", c_void_p)),
        *(("keys", c_void_p), ("values", c_void_p)),
    )


class LayerBatch(Structure):
    """A packed batch in one layer; the fields are those of `layer.h`."""

    SCRATCH: ClassVar = ("normed", "qkv", "heads", "attn", "gate_up", "activated")
    _fields_ = (
        *(("rows", c_int64), ("hidden", c_int64), ("inner", c_int64)),
        ("shape", AttentionShape),
        *(("eps", c_float), ("wants_lse", c_int32), ("cosine", c_void_p), ("sine", c_void_p)),
        *(("runs", c_void_p), ("num_runs", c_int64), ("shrunk_width", c_int64)),
        *(("cache", CacheRows), ("compressed", HeadRows)),
        *(("groups", POINTER(SpanGroup)), ("num_groups", c_int64)),
        *(("windows", POINTER(Window)), ("num_windows", c_int64)),
        ("x", c_void_p),
        *((name, c_void_p) for name in SCRATCH),
        *(("shrunk", c_void_p), ("lse", c_void_p)),
    )


class AttentionGrads(Structure):
    """What attention's backward reads and writes."""

    _fields_ = (
        ("q", c_void_p),
        ("out", c_void_p),
        ("grad", c_void_p),
        ("lse", c_void_p),
        ("grad_q", c_void_p),
        ("grad_k", c_void_p),
        ("grad_v", c_void_p),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "rms_norm": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int),
    "rms_norm_backward": (
        *(c_void_p, c_void_p, c_void_p, c_void_p),
        *(c_int64, c_int64, c_float, c_bool, c_int),
    ),
    "rotate": (
        *(c_void_p, c_int64, c_void_p, c_void_p, c_void_p),
        *(c_int64, c_int64, c_int64, c_float, c_int),
    ),
    "silu_mul": (c_void_p, c_void_p, c_int64, c_int64, c_int),
    "silu_mul_backward": (c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int),
    "add_adapters": (
        *(POINTER(AdaptedLinear), c_void_p, c_int64),
        *(c_void_p, c_void_p, c_int64, c_void_p, c_int),
    ),
    "attend": (
        *(POINTER(KeySource), c_void_p, c_int64, POINTER(AttentionShape)),
        *(c_void_p, c_void_p, c_void_p, c_int),
    ),
    "attend_backward": (
        *(POINTER(KeySource), c_void_p, c_int64, POINTER(AttentionShape)),
        *(POINTER(AttentionGrads), c_int),
    ),
    "forward_layer": (POINTER(LayerWeights), POINTER(LayerBatch), c_int),
    "backward_layer": (POINTER(LayerWeights), c_void_p, c_int),
}
_LINEAR = (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_bool, c_int)


def _bind(loaded: ctypes.CDLL, name: str, signature: tuple[Any, ...]) -> Any:
    function = getattr(loaded, name)
    function.argtypes, function.restype = signature, None
    return function


@cache
def cpu_kernels(dtype: torch.dtype) -> CpuKernels | None:
    """The kernels for a storage dtype; None where this machine has none for it."""
    loaded = library()
    if loaded is None or dtype not in NAMES:
        return None
    if dtype is torch.bfloat16 and "avx512_bf16" not in cpu_flags():
        return None
    return CpuKernels(loaded, dtype)


def cpu_kernels_for(x: Tensor) -> CpuKernels | None:
    """The kernels for a tensor that lies on the CPU, if there are any for its dtype."""
    return cpu_kernels(x.dtype) if x.device.type == "cpu" else None


@dataclass(frozen=True, slots=True)
class PanelWeights:
    """A weight (out_features, in_features) in panels of outputs, as the GEMM streams it.

    bf16 lies in pairs, (panels, in / 2, outputs, 2), float32 as (panels, in, outputs); the last
    panel is padded with zeros.
    """

    panels: Tensor
    out_features: int
    in_features: int

    @classmethod
    def try_of(cls, weight: Tensor) -> PanelWeights | None:
        """Lay a weight out; float32 that bf16 holds exactly is kept in bf16.

        None where this machine has no kernel for the dtype, or for an odd number of bf16 inputs.
        """
        out_features, in_features = weight.shape
        if cpu_kernels_for(weight) is None:
            return None
        narrow = weight.to(torch.bfloat16)
        if in_features % 2 == 0 and bool((narrow.to(weight.dtype) == weight).all()):
            weight = narrow
        elif weight.dtype is torch.bfloat16:
            return None
        panel = panel_outputs()
        padded = weight.new_zeros(-(-out_features // panel) * panel, in_features)
        padded[:out_features] = weight
        if weight.dtype is torch.bfloat16:
            panels = padded.view(-1, panel, in_features // 2, 2).permute(0, 2, 1, 3)
        else:
            panels = padded.view(-1, panel, in_features).transpose(1, 2)
        return cls(panels.contiguous(), out_features, in_features)

    def matrix(self) -> Tensor:
        """The weight as it was before."""
        outputs_last = self.panels.dim() == 3
        rows = self.panels.transpose(1, 2) if outputs_last else self.panels.permute(0, 2, 1, 3)
        return rows.reshape(-1, self.in_features)[: self.out_features]


def panel_outputs() -> int:
    """Outputs of a panel: two vector registers of float32."""
    return 32 if "avx512f" in cpu_flags() else 16


class CpuKernels:
    """The library's functions for one storage dtype."""

    def __init__(self, loaded: ctypes.CDLL, dtype: torch.dtype) -> None:
        name = NAMES[dtype]
        self._functions = {
            op: _bind(loaded, f"{op}_{name}", signature) for op, signature in _SIGNATURES.items()
        }
        self._linears = {
            held: _bind(loaded, f"linear_{name}_{NAMES[held]}", _LINEAR)
            for held in ((torch.bfloat16,) if name == "bf16" else tuple(NAMES))
        }

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Weight * x / rms(x), row by row."""
        x = x.contiguous()
        y = torch.empty_like(x)
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        self._functions["rms_norm"](
            *_pointers(x, weight, y), rows, width, eps, torch.get_num_threads()
        )
        return y

    def rms_norm_backward(
        self, grad: Tensor, x: Tensor, weight: Tensor, eps: float, into: Tensor | None = None
    ) -> Tensor:
        """Gradient of rms_norm's input, added to `into` where given."""
        grad, x = grad.contiguous(), x.contiguous()
        total = torch.empty_like(x) if into is None else into
        rows, width = x.numel() // x.shape[-1], x.shape[-1]
        self._functions["rms_norm_backward"](
            *_pointers(grad, x, weight, total),
            *(rows, width, eps, into is not None, torch.get_num_threads()),
        )
        return total

    def rotate(self, x_THD: Tensor, cos: Tensor, sin: Tensor, direction: float = 1.0) -> Tensor:
        """RoPE; heads must lie side by side within a row. direction -1 turns back."""
        rows, heads, dim = x_THD.shape
        if x_THD.stride()[1:] != (dim, 1):
            x_THD = x_THD.contiguous()
        y = torch.empty(rows, heads, dim, dtype=x_THD.dtype)
        self._functions["rotate"](
            *(x_THD.data_ptr(), x_THD.stride(0), *_pointers(cos, sin, y)),
            *(rows, heads, dim, direction, torch.get_num_threads()),
        )
        return y

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up, (T, I) from (T, 2 I)."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        y = torch.empty(rows, width, dtype=gate_up.dtype)
        self._functions["silu_mul"](*_pointers(gate_up, y), rows, width, torch.get_num_threads())
        return y

    def silu_mul_backward(self, grad: Tensor, gate_up: Tensor) -> Tensor:
        """Gradient of silu_mul's input, laid out like it."""
        result = torch.empty_like(gate_up)
        rows, width = grad.shape
        self._functions["silu_mul_backward"](
            *_pointers(grad, gate_up, result), rows, width, torch.get_num_threads()
        )
        return result

    def linear(
        self, x: Tensor, weights: PanelWeights, bias: Tensor | None, into: Tensor | None
    ) -> Tensor:
        """X @ W.T + bias, added to `into` where given: (T, O)."""
        x = x.contiguous()
        y = x.new_empty(x.shape[0], weights.out_features) if into is None else into
        self._linears[weights.panels.dtype](
            *(*_pointers(x, weights.panels, y), _pointer(bias)),
            *(x.shape[0], weights.in_features, weights.out_features),
            *(into is not None, torch.get_num_threads()),
        )
        return y

    def adapted_linear(
        self, place: LinearPlace, bounds: list[int], shrink: Tensor, expands: tuple[Tensor, ...]
    ) -> AdaptedLinear:
        """One fused linear's matrices; output columns bounds[j] to bounds[j + 1] are expand j's."""
        described = AdaptedLinear(
            *(place.first_bit // MAX_PROJECTIONS, place.first_middle),
            *(len(expands), shrink.shape[1], bounds[-1]),
        )
        described.shrink = shrink.data_ptr()
        for j, expand in enumerate(expands):
            described.expand[j] = expand.data_ptr()
        for j, bound in enumerate(bounds):
            described.first_output[j] = bound
        return described

    def add_adapters(self, linear: AdaptedLinear, runs: RunTable, x: Tensor, y: Tensor) -> None:
        """Y += what each run's adapter adds; in place."""
        max_width = runs.max_rank * linear.num_projections
        shrunk = torch.empty(x.shape[0], max_width)
        self._functions["add_adapters"](
            *(byref(linear), runs.runs.data_ptr(), len(runs.runs)),
            *(*_pointers(x, shrunk), max_width, _address(y), torch.get_num_threads()),
        )

    def attend(
        self,
        source: KeySource,
        spans: Tensor,
        shape: AttentionShape,
        q_THD: Tensor,
        out_THD: Tensor,
        lse_TH: Tensor | None,
    ) -> None:
        """Causal attention of spans; writes their rows of `out_THD`, and of `lse_TH`.

        Shapes:
            spans: (n, 4) int64: row, queries, start, first entry of its table (or of its keys).
        """
        self._functions["attend"](
            *(byref(source), spans.data_ptr(), len(spans), byref(shape)),
            *(q_THD.data_ptr(), _address(out_THD), _pointer(lse_TH), torch.get_num_threads()),
        )

    def attend_backward(
        self, source: KeySource, spans: Tensor, shape: AttentionShape, grads: AttentionGrads
    ) -> None:
        """Write the gradient of the queries, add to those of keys and values."""
        self._functions["attend_backward"](
            *(byref(source), spans.data_ptr(), len(spans), byref(shape)),
            *(byref(grads), torch.get_num_threads()),
        )

    def forward_layer(self, weights: LayerWeights, batch: LayerBatch) -> None:
        """Carry `batch.x` through one layer, in place; keep what its windows and pages take."""
        self._functions["forward_layer"](byref(weights), byref(batch), torch.get_num_threads())

    def backward_layer(self, transposed: LayerWeights, unit: Structure) -> None:
        """Carry a gradient back through one layer, in place; `unit` is a BackwardRange."""
        self._functions["backward_layer"](byref(transposed), byref(unit), torch.get_num_threads())


def _pointers(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(_address(tensor) for tensor in tensors)


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else _address(tensor)


def _address(tensor: Tensor) -> int:
    assert tensor.is_contiguous()
    return tensor.data_ptr()
