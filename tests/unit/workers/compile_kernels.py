"""Compiles every Triton kernel for a Hopper card as it would be launched in bf16: no card needed.

Run as a program, without TRITON_INTERPRET; prints the names of the kernels.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from workers.kernels import segments, span_tiles
from workers.kernels.triton import adapters, attention, attention_backward, snapkv
from workers.kernels.triton.gate import silu_mul, silu_mul_backward
from workers.kernels.triton.norm import rms_norm, rms_norm_backward
from workers.kernels.triton.pages import store_heads, store_pages
from workers.kernels.triton.rotary import rotate
from workers.kernels.triton.sampling import sample

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
}
SHARED_BYTES = 227 << 10  # what a block may have on a Hopper card
NAMES: set[str] = set()
OPTIONS = ("num_warps", "num_stages")
ALIGNED = [["tt.divisibility", 16]]


def type_of(value: object) -> str:
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compile_only(self: Any, *args: Any, **kwargs: Any) -> None:
    """Stand in for a launch: the same kernel, constants and types, compiled and forgotten."""
    options = {name: kwargs[name] for name in OPTIONS if name in kwargs}
    values = dict(zip(self.arg_names, args, strict=False)) | kwargs
    constants = {p.name: values[p.name] for p in self.params if p.is_constexpr}
    signature = {
        name: "constexpr" if name in constants else type_of(values[name]) for name in self.arg_names
    }
    aligned = {
        (place,): ALIGNED
        for place, name in enumerate(self.arg_names)
        if isinstance(values[name], Tensor) or values[name] in (16, 64, 128, 4096)
        if name not in constants
    }
    source = ASTSource(self, signature, constants, aligned)
    compiled = triton.compile(source, target=HOPPER, options=options)
    shared = compiled.metadata.shared
    assert shared <= SHARED_BYTES, f"{self.__name__} needs {shared} bytes of shared memory."
    NAMES.add(self.__name__)


def CONSTANTS(kernel: Any) -> set[str]:
    return {parameter.name for parameter in kernel.params if parameter.is_constexpr}


def bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def launch_rows() -> None:
    x, weight, half = bf16(4, 4096), bf16(4096), bf16(4, 1, 64)
    rms_norm(x, weight, 1e-5)
    rms_norm_backward(x, x, weight, 1e-5)
    rms_norm_backward(x, x, weight, 1e-5, into=x)
    rotate(bf16(4, 40, 128), half, half)
    rotate(bf16(4, 40, 128), half, half, direction=-1.0)
    silu_mul(bf16(4, 2 * 14336))
    silu_mul_backward(bf16(4, 14336), bf16(4, 2 * 14336))
    pages, place = bf16(9, 8, 32, 128), torch.zeros(4, dtype=torch.int64)
    store_pages(pages, pages, place, place, bf16(4, 8, 128), bf16(4, 8, 128))
    sample(torch.zeros(4, 128256), torch.zeros(4), torch.zeros(4))


def launch_adapters(rows: int, tile: int, *, has_middles: bool) -> None:
    table = torch.zeros(1, segments.RUN_FIELDS, dtype=torch.int64)
    places = torch.zeros(rows // tile, 2, dtype=torch.int64)
    tiles = segments.RunTable(table, places, tile, 64, has_middles)
    matrices, bounds = torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
    place = segments.LinearPlace(0, 7)
    shrink = segments.Factor(matrices[:1], bounds[:2], 3, 4096, place, True)
    expand = segments.Factor(matrices, bounds, 1, 4096, place, True)
    x = bf16(rows, 4096)
    shrunk = adapters.contract(x, shrink, tiles)
    adapters.expand(shrunk, expand, tiles, bf16(rows, 6144))
    grad = adapters.contract(bf16(rows, 6144), expand, tiles)
    adapters.expand(grad[:1], shrink, replace(tiles, has_middles=False), x)
    adapters.accumulate(torch.zeros(192, 4096), shrunk[0], 0, x)
    if has_middles:
        for transposed in (False, True):
            adapters.join(grad, shrink, tiles, torch.bfloat16, transposed=transposed)
        adapters.accumulate(torch.zeros(64, 64), shrunk[0], 0, shrunk[0][:, :64])


def launch_attention(window: int, queries: int, splits: int, *, has_heads: bool) -> None:
    shape = span_tiles.HeadShape(8, 4, 128, window)
    pages, tables = bf16(9, 8, 32, 128), torch.zeros(9, dtype=torch.int32)
    lines = span_tiles.HeadLines(torch.zeros(1, 5, dtype=torch.int64), 1, 1 << 21)
    heads = lines if has_heads else None
    paged = span_tiles.KeyPlace(pages, pages, 32768, 4096, 128, tables, 32, heads)
    spans, tiles = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)
    batch = span_tiles.SpanTiles(spans, tiles, shape.tile_queries(queries), splits)
    q, lse = bf16(queries, 32, 128), torch.zeros(queries, 32)
    attention.attend(q, paged, batch, shape, q, lse)
    if has_heads:
        store_heads(paged, spans, queries, bf16(queries, 8, 128), bf16(queries, 8, 128))
        return
    keys = bf16(queries, 8, 128)
    pack = span_tiles.KeyPlace(keys, keys, 0, 128, 1024)
    attention.attend(q, pack, batch, shape, q, lse)
    saved, sums = attention_backward.AttentionSaved(q, q, lse, q), torch.zeros(queries, 8, 128)
    attention_backward.attend_backward(saved, pack, batch, tiles, shape, q, (sums, sums))


def launch_column_sums(counts: Tensor | None) -> None:
    places = torch.zeros(32, dtype=torch.int64)
    snapkv.column_sums(bf16(32, 32, 128), bf16(8, 4096, 128), places, counts)


if __name__ == "__main__":
    JITFunction.run = compile_only
    launch_rows()
    for has_middles in (False, True):
        launch_adapters(16, 16, has_middles=has_middles)
        launch_adapters(256, 64, has_middles=has_middles)
    launch_attention(0, 1, 8, has_heads=False)
    launch_attention(4096, 64, 1, has_heads=False)
    launch_attention(0, 1, 8, has_heads=True)
    launch_attention(0, 64, 1, has_heads=True)
    launch_column_sums(None)
    launch_column_sums(torch.zeros(8, 4096))
    sys.stdout.write(" ".join(sorted(NAMES)))
