"""What the compiler makes of every Triton kernel for a Hopper card, at the shapes of two Llamas.

Run as a program, without TRITON_INTERPRET: prints a table, or with `--json` all figures, of the
shapes that are named or of all. No card is needed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tests.unit.workers.hopper import CompiledKernel, Compiler
from workers.kernels import segments, span_tiles
from workers.kernels.qkv_rows import HeadNorms, PageRows, QkvShape
from workers.kernels.triton import adapters, attention, attention_backward, middles, snapkv
from workers.kernels.triton.gate import silu_mul, silu_mul_backward
from workers.kernels.triton.norm import rms_norm, rms_norm_backward
from workers.kernels.triton.pages import store_heads
from workers.kernels.triton.qkv import place_heads, place_heads_backward
from workers.kernels.triton.sampling import sample
from workers.kernels.triton.weight_only import FEW_ROWS, coded_linear
from workers.kernels.weight_codes import WeightCodes

VOCABULARY = 128256
PAGE_TOKENS = 32
RANK = 16
KV_HEADS = 8
GROUP = 128
CODES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn, "int4": torch.uint8}


@dataclass(frozen=True)
class Shape:
    """A layer of a Llama 3; its KV heads are eight."""

    name: str
    hidden: int
    group: int
    dim: int
    inner: int

    @property
    def heads(self) -> int:
        return KV_HEADS * self.group

    @property
    def qkv(self) -> int:
        return (self.heads + 2 * KV_HEADS) * self.dim


SHAPES = (Shape("8B", 4096, 4, 128, 14336), Shape("1B", 2048, 4, 64, 8192))


def bf16(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.bfloat16)


def launch_rows(shape: Shape) -> None:
    x, weight, half = bf16(4, shape.hidden), bf16(shape.hidden), bf16(4, 1, shape.dim // 2)
    heads = bf16(4, shape.heads + KV_HEADS, shape.dim)
    rms_norm(x, weight, 1e-5)
    rms_norm_backward(x, x, weight, 1e-5, into=x)
    silu_mul(bf16(4, 2 * shape.inner))
    silu_mul_backward(bf16(4, shape.inner), bf16(4, 2 * shape.inner))
    pages, place = bf16(9, KV_HEADS, PAGE_TOKENS, shape.dim), torch.zeros(4, dtype=torch.int64)
    qkv, sizes = bf16(4, shape.qkv), QkvShape(shape.heads, KV_HEADS, shape.dim)
    norms = HeadNorms(bf16(shape.dim), bf16(shape.dim), 1e-5)
    stored = PageRows(pages, pages, slice(0, 4), place, place)
    place_heads(qkv, sizes, None, (half, half), stored)
    place_heads(qkv, sizes, norms, (half, half), stored)
    sums = torch.zeros(2, 4, KV_HEADS, shape.dim)
    placed = bf16(4, shape.heads, shape.dim)
    place_heads_backward(placed, (sums[0], sums[1]), sizes, None, (half, half), None)
    place_heads_backward(placed, (sums[0], sums[1]), sizes, norms, (half, half), heads)
    sample(torch.zeros(4, VOCABULARY), torch.zeros(4), torch.zeros(4))


def launch_adapters(shape: Shape, rows: int, tile: int, *, has_middles: bool) -> None:
    table = torch.zeros(1, segments.RUN_FIELDS, dtype=torch.int64)
    places = torch.zeros(rows // tile, 2, dtype=torch.int64)
    tiles = segments.RunTable(table, places, tile, RANK, has_middles)
    matrices, bounds = torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
    place = segments.LinearPlace(0, 7)
    shrink = segments.Factor(matrices[:1], bounds[:2], 3, shape.hidden, place, True)
    expand = segments.Factor(matrices, bounds, 1, shape.heads * shape.dim, place, True)
    x = bf16(rows, shape.hidden)
    shrunk = adapters.contract(x, shrink, tiles)
    adapters.expand(shrunk, expand, tiles, bf16(rows, shape.qkv))
    if tile == segments.SMALLEST_TILE:
        return
    grad = adapters.contract(bf16(rows, shape.qkv), expand, tiles)
    adapters.expand(grad[:1], shrink, replace(tiles, has_middles=False), x)
    adapters.accumulate(torch.zeros(3 * RANK, shape.hidden), shrunk[0], 0, x)
    if has_middles:
        for transposed in (False, True):
            middles.join(grad, shrink, tiles, torch.bfloat16, transposed=transposed)
        adapters.accumulate(torch.zeros(RANK, RANK), shrunk[0], 0, shrunk[0][:, :RANK])


def paged(shape: Shape, *, has_heads: bool = False) -> span_tiles.KeyPlace:
    pages, tables = bf16(9, KV_HEADS, PAGE_TOKENS, shape.dim), torch.zeros(9, dtype=torch.int32)
    page, head, token, _ = pages.stride()
    lines = span_tiles.HeadLines(torch.zeros(1, 5, dtype=torch.int64), 1, 2 * pages[0].numel())
    heads = lines if has_heads else None
    return span_tiles.KeyPlace(pages, pages, page, head, token, tables, PAGE_TOKENS, heads)


def launch_attention(
    shape: Shape, place: span_tiles.KeyPlace, queries: int, splits: int, window: int = 0
) -> None:
    heads, batch = tiled(shape, queries, splits, window)
    q, out, lse = rotated(shape, queries)
    attention.attend(q, place, batch, heads, out, lse)


def launch_compressed(shape: Shape, queries: int, splits: int) -> None:
    place, keys = paged(shape, has_heads=True), bf16(queries, KV_HEADS, shape.dim)
    launch_attention(shape, place, queries, splits)
    store_heads(place, torch.zeros(1, 4, dtype=torch.int64), queries, keys, keys)


def launch_votes(shape: Shape) -> None:
    queries, keys = bf16(32, shape.heads, shape.dim), bf16(KV_HEADS, 4096, shape.dim)
    for counts in (None, torch.zeros(KV_HEADS, 4096)):
        snapkv.column_sums(queries, keys, torch.zeros(32, dtype=torch.int64), counts)


def launch_pack(shape: Shape, window: int = 0) -> None:
    keys = bf16(64, KV_HEADS, shape.dim)
    pack = span_tiles.KeyPlace(keys, keys, 0, shape.dim, KV_HEADS * shape.dim)
    launch_attention(shape, pack, 64, 1, window)
    heads, batch = tiled(shape, 64, 1, window)
    _, out, lse = rotated(shape, 64)
    saved = attention_backward.AttentionSaved(out, out, lse, out)
    sums = torch.zeros(64, KV_HEADS, shape.dim)
    attention_backward.attend_backward(saved, pack, batch, batch.tiles, heads, out, (sums, sums))


def tiled(
    shape: Shape, queries: int, splits: int, window: int = 0
) -> tuple[span_tiles.HeadShape, span_tiles.SpanTiles]:
    heads = span_tiles.HeadShape(KV_HEADS, shape.group, shape.dim, window)
    spans, tiles = torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)
    return heads, span_tiles.SpanTiles(spans, tiles, heads.tile_queries(queries), splits)


def rotated(shape: Shape, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query heads as they lie beside the keys, output and log-sum-exps."""
    heads = bf16(rows, shape.heads + KV_HEADS, shape.dim)[:, : shape.heads]
    return heads, bf16(rows, shape.heads, shape.dim), torch.zeros(rows, shape.heads)


def launch_codes(shape: Shape, kind: str, rows: int) -> None:
    """A product whose inputs are split, and one whose outputs fill a card."""
    for outputs in (shape.hidden, 4 * shape.inner):
        matrix = coded(kind, outputs, shape.hidden)
        coded_linear(bf16(rows, shape.hidden), matrix, bf16(outputs), bf16(rows, outputs))


def coded(kind: str, outputs: int, inputs: int) -> WeightCodes:
    if kind == "int4":
        groups = torch.zeros(outputs, inputs // GROUP)
        codes = torch.zeros(outputs, inputs // 2, dtype=CODES[kind])
        return WeightCodes(kind, codes, groups, groups.to(torch.uint8))
    codes = torch.zeros(outputs, inputs, dtype=CODES[kind])
    return WeightCodes(kind, codes, torch.zeros(outputs, 1))


def launch_all(compiler: Compiler, shape: Shape) -> None:
    compiler.begin(f"{shape.name}, rows")
    launch_rows(shape)
    for kind, has_middles in (("", False), (" with middles", True)):
        compiler.begin(f"{shape.name}, adapters{kind} of decode")
        launch_adapters(shape, 16, 16, has_middles=has_middles)
        compiler.begin(f"{shape.name}, adapters{kind} of prompts and training")
        launch_adapters(shape, 256, 64, has_middles=has_middles)
    for kind in CODES:
        for rows in (16, FEW_ROWS):
            compiler.begin(f"{shape.name}, {rows} rows times {kind}")
            launch_codes(shape, kind, rows)
    compiler.begin(f"{shape.name}, attention of decode")
    launch_attention(shape, paged(shape), 1, 8)
    compiler.begin(f"{shape.name}, attention of compressed decode")
    launch_compressed(shape, 1, 8)
    compiler.begin(f"{shape.name}, attention of compressed prompts")
    launch_compressed(shape, 64, 1)
    compiler.begin(f"{shape.name}, attention of prompts")
    launch_attention(shape, paged(shape), 64, 1)
    compiler.begin(f"{shape.name}, attention of prompts in a window")
    launch_attention(shape, paged(shape), 64, 1, window=4096)
    compiler.begin(f"{shape.name}, votes")
    launch_votes(shape)
    compiler.begin(f"{shape.name}, attention of training")
    launch_pack(shape)
    compiler.begin(f"{shape.name}, attention of training in a window")
    launch_pack(shape, window=4096)


def figures_of(part: str, kernel: CompiledKernel) -> dict[str, Any]:
    return {
        "part": part,
        "kernel": kernel.name,
        "threads": kernel.threads,
        "registers": kernel.registers,
        "stack bytes": kernel.stack_bytes,
        "shared bytes": kernel.shared_bytes,
        "blocks on an SM": kernel.blocks_on_sm,
        "occupancy": kernel.occupancy,
        "products": kernel.products,
        "loads": kernel.accesses("LDG"),
        "copies": kernel.accesses("LDGSTS"),
        "stores": kernel.accesses("STG"),
    }


def cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} x {width}" for width, count in value.items())
    return f"{value:.0%}" if isinstance(value, float) else str(value)


def table(figures: list[dict[str, Any]]) -> str:
    lines = [list(figures[0]), ["---"] * len(figures[0])]
    lines += [[cell(value) for value in each.values()] for each in figures]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    compiler = Compiler()
    compiler.install()
    for shape in [each for each in SHAPES if each.name in sys.argv] or SHAPES:
        launch_all(compiler, shape)
    figures = [figures_of(*found) for found in compiler.kernels]
    sys.stdout.write(json.dumps(figures) if "--json" in sys.argv else table(figures))
