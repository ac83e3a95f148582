"""Every kernel of the device against the plain torch beside it: the difference, and both times.

On a card both run in bf16 at the shapes of an 8B model's layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.attention_checks import attention_checks
from benchmarks.gpu.random_model import RANK, adapter_columns, random_decoder
from benchmarks.gpu.setting import Figures, Setting
from scheduler.devices import BYTES_IN_FORMAT
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.decoder import Decoder
from workers.kernels.device_kernels import KERNELS, kernels_of
from workers.kernels.qkv_rows import HeadNorms, QkvShape
from workers.layers import (
    rms_norm,
    rms_norm_backward,
    silu_mul,
    silu_mul_backward,
)
from workers.model import DOWN, QKV
from workers.qkv import place_heads, place_heads_backward
from workers.weight_format import find_format

TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 1e-4}  # shares of the largest number
Check = Callable[[], Tensor]


@torch.inference_mode()
def measure(setting: Setting) -> Iterator[Figures]:
    """Difference and times by kernel; `wrong` names those that are not within their tolerance."""
    decoder = random_decoder("tiny" if setting.is_tiny else "8b-layer", setting, 4)
    checks = row_checks(setting, decoder) | adapter_checks(setting, decoder)
    checks |= attention_checks(setting, decoder) | code_checks(setting, decoder)
    limit, wrong = TOLERANCE[setting.dtype], []
    yield {"kernels": type(kernels_of(setting.device, setting.dtype)).__name__}
    for name, check in checks.items():
        figures = compare(setting, check)
        wrong += [] if figures["difference"] <= limit else [name]
        yield {"wrong": wrong, name: figures}


def compare(setting: Setting, check: Check) -> dict[str, float]:
    """A kernel beside plain torch: largest difference as a share of the largest number."""
    got = check().float()
    kernel_s = setting.time_s(check)
    with patch.dict(KERNELS, {setting.device.type: no_kernels}):
        want = check().float()
        torch_s = setting.time_s(check)
    difference = (got - want).abs().max() / want.abs().max().clamp_min(1e-6)
    return {"difference": float(difference), "us": kernel_s * 1e6, "torch_us": torch_s * 1e6}


def no_kernels(dtype: torch.dtype) -> None:
    """Stand in for a device that has none."""
    del dtype


def row_checks(setting: Setting, decoder: Decoder) -> dict[str, Check]:
    """Norm, heads and gate, forward and back."""
    config, rows = decoder.config, 16 if setting.is_tiny else 4096
    heads, half = config.num_heads + config.num_kv_heads, config.head_dim // 2

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape, device=setting.device).to(setting.dtype)

    x, grad, weight = torch.stack([rand(rows, config.hidden_size) for _ in range(3)])
    gate_up, inner = rand(rows, 2 * config.intermediate_size), rand(rows, config.intermediate_size)
    q, angles = rand(rows, heads, config.head_dim), rand(rows, 1, half)
    cos, sin = angles.cos(), angles.sin()
    shape = QkvShape(config.num_heads, config.num_kv_heads, config.head_dim)
    norms = HeadNorms(rand(config.head_dim), rand(config.head_dim), 1e-5)
    qkv, sums = rand(rows, config.qkv_size), rand(2, rows, config.num_kv_heads, config.head_dim)
    grad_q = q[:, : config.num_heads].contiguous()
    return {
        "rms_norm": lambda: rms_norm(x, weight[0], 1e-5),
        "rms_norm_backward": lambda: rms_norm_backward(grad, x, weight[0], 1e-5),
        "silu_mul": lambda: silu_mul(gate_up),
        "silu_mul_backward": lambda: silu_mul_backward(inner, gate_up),
        "heads": lambda: torch.cat(place_heads(qkv, shape, norms, (cos, sin), None), dim=1),
        "heads_backward": lambda: place_heads_backward(
            grad_q, (sums[0], sums[1]), shape, norms, (cos, sin), q
        ),
    }


def adapter_checks(setting: Setting, decoder: Decoder) -> dict[str, Check]:
    """Four adapters in one launch, for decode rows and for long windows."""
    counts = (1,) if setting.is_tiny else (1, 512)
    middles = {"r x r": RANK, "diagonal": 1}
    plain = {
        f"adapters {linear.name}, {count} rows each": adapter_check(setting, decoder, index, count)
        for index, linear in enumerate(decoder.arena.linears)
        for count in counts
    }
    return plain | {
        f"{kind} adapters qkv, {count} rows each": adapter_check(
            setting, decoder, QKV, count, middle
        )
        for kind, middle in middles.items()
        for count in counts
    }


def adapter_check(
    setting: Setting, decoder: Decoder, index: int, count: int, middle: int = 0
) -> Check:
    """`count` rows each through a linear's part of adapters of one kind."""
    arena = decoder.arena
    x = torch.randn(4 * count, arena.linears[index].in_features, device=setting.device)
    x = x.to(setting.dtype)
    runs = [AdapterRun(i * count, (i + 1) * count, adapter_columns(i, middle)) for i in range(4)]
    for run in runs:
        for matrix in arena.terms(run.columns)[0, index].middle_RM:
            matrix.normal_(0.0, RANK**-0.5)
    rows = AdapterRows(runs)

    def check() -> Tensor:
        y = x.new_zeros(4 * count, arena.linears[index].out_features)
        rows.add(arena, 0, index, x, y)
        return y

    return check


def code_checks(setting: Setting, decoder: Decoder) -> dict[str, Check]:
    """Few rows times a layer's last matrix in each format; none where torchao is missing."""
    if find_spec("torchao") is None:
        return {}
    weight = decoder.weights.layers[0].linears[DOWN].weight
    x = torch.randn(16, weight.shape[1], device=setting.device).to(setting.dtype)
    return {f"16 rows times {name}": code_check(name, weight, x) for name in BYTES_IN_FORMAT}


def code_check(name: str, weight: Tensor, x: Tensor) -> Check:
    """The product with a matrix in one format."""
    quantized = find_format(name)
    assert quantized is not None
    matrix = quantized.of(weight)
    return lambda: matrix.linear(x)
