"""What attention kernels read beside queries: where keys lie, and spans cut into tiles.

Shape suffixes: K KV heads, S spans.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

SMALLEST_TILE = 16  # a side of Triton's matrix product
LARGEST_TILE = 128  # stacked rows of a tile of long spans
BLOCK_KEYS = 64
GRAD_KEYS = 128  # keys of a tile that sums their gradients
KEYS_PER_SPLIT = 256
ENOUGH_PROGRAMS = 264  # two for each multiprocessor of a large card
MAX_SPLITS = 32


@dataclass(frozen=True, slots=True)
class HeadLines:
    """Where one layer's heads look their pages up, in a batch that has compressed sequences.

    A page is known by its number: where it lies among all pages of keys and of values. A uniform
    span finds its pages through its block table all the same.

    Attributes:
        lines_S5: int64, see `HeadTables.line`; zeros: the span's sequence is uniform.
        layer: the layer.
        block_stride: elements of a superblock.
    """

    lines_S5: Tensor
    layer: int
    block_stride: int


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Keys and values of one layer, and how their dimensions stride, in elements.

    Attributes:
        tables: (n,) int32 block ids of all spans, end to end; None where keys lie side by side.
        page_tokens: tokens of a page; 0 without tables.
        heads: tables of compressed sequences; `keys` and `values` are then those of all layers, and
            pages stride by number. None: every span has a key for each of its tokens.
    """

    keys: Tensor
    values: Tensor
    page_stride: int
    head_stride: int
    token_stride: int
    tables: Tensor | None = None
    page_tokens: int = 0
    heads: HeadLines | None = None


@dataclass(frozen=True, slots=True)
class SpanTiles:
    """Spans of a batch, cut into tiles of queries.

    Attributes:
        spans: (n, 4) int64: row, queries, start, first entry of its table (or first key).
        tiles: (m, 2) int64: span, first query.
        queries: queries of a tile.
        splits: pieces that the keys of a tile are cut into.
    """

    spans: Tensor
    tiles: Tensor
    queries: int
    splits: int


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Heads of an attention, and its sliding window (0: none)."""

    kv_heads: int
    group: int
    dim: int
    window: int

    @property
    def stacked(self) -> int:
        """Rows that one query takes in a tile."""
        return 1 << (self.group - 1).bit_length()

    def tile_queries(self, longest: int) -> int:
        """Queries of a tile for spans of up to `longest` queries."""
        rows = SMALLEST_TILE if longest * self.stacked <= SMALLEST_TILE else LARGEST_TILE
        return max(1, rows // self.stacked)

    def splits(self, num_tiles: int, queries: int, most_keys: int) -> int:
        """Pieces to cut the keys of short tiles into, so that the card is full."""
        if queries * self.stacked > SMALLEST_TILE:
            return 1
        wanted = -(-ENOUGH_PROGRAMS // (num_tiles * self.kv_heads))
        return max(1, min(MAX_SPLITS, wanted, -(-most_keys // KEYS_PER_SPLIT)))
