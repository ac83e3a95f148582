"""How fast ComPEFT encodes and decodes an adapter of a large model."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from workers.codec import num_entries
from workers.codecs.compeft import Compeft

LARGE = (32, 4096)  # layers and width of the model
ROUNDS = 7


def large_adapter_speed() -> list[dict[str, float]]:
    """Fastest of some rounds on random numbers, shaped as rank 16 on q, k, v, o of a 7B model."""
    shapes = _shapes(*LARGE)
    torch.manual_seed(0)
    params = {name: torch.randn(shape) for name, shape in shapes.items()}
    rows = []
    for density in (0.05, 0.2):
        codec = Compeft(Compeft.Config(density=density))
        payload = codec.encode(params)
        ternary = codec.unpack(payload, shapes)
        rows.append(
            {
                "density": density,
                "num_parameters": num_entries(shapes),
                "payload_bytes": len(payload),
                "ternary_bytes_in_memory": ternary.num_bytes,
                "encode_ms": _fastest_ms(partial(codec.encode, params)),
                "file_to_bitmaps_ms": _fastest_ms(partial(codec.unpack, payload, shapes)),
                "bitmaps_to_float32_ms": _fastest_ms(partial(codec.expand, ternary, shapes)),
            }
        )
    return rows


def _shapes(layers: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{layer}.{module}.lora_{factor}.weight": (16, width) if factor == "A" else (width, 16)
        for layer in range(layers)
        for module in "qkvo"
        for factor in "AB"
    }


def _fastest_ms(work: Callable[[], object]) -> float:
    """Time of the round that was disturbed least."""
    times = []
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        work()
        times.append((time.perf_counter() - began_s) * 1e3)
    return min(times)
