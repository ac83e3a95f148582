"""How much some queries of a sequence look at each of its keys: what SnapKV, H2O and EMS score by.

Equals `reference.column_sums`, but for each query head, and for queries that need not be the last
ones. Keys are walked twice: for the log-sum-exp of every query, in splits that fill the card, then
for the sums, which have one owner each. Pooling and choice of keys are the policy's.

Source: Li et al. 2024, arXiv:2404.14469; Zhang et al. 2023, arXiv:2306.14048.

Shape suffixes: H query heads, K KV heads, N queries, T keys, D head_dim.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from workers.kernels.span_tiles import BLOCK_KEYS, SMALLEST_TILE
from workers.kernels.triton.accumulator import accumulator

KEYS_PER_SPLIT = 512
MOST_QUERIES = 64  # of a tile


def column_sums(
    q_HND: Tensor, k_KTD: Tensor, places_N: Tensor, log_counts_KT: Tensor | None
) -> Tensor:
    """Attention that each key gets from all queries of a head, (H, T) float32 or wider.

    Args:
        q_HND: queries.
        k_KTD: keys.
        places_N: the last key that each query sees, int64.
        log_counts_KT: what is added to logits; None: nothing.
    """
    (heads, num_queries, dim), num_keys = q_HND.shape, k_KTD.shape[1]
    if k_KTD.stride(2) != 1:
        k_KTD = k_KTD.contiguous()
    q_HND, wide = q_HND.contiguous(), torch.promote_types(q_HND.dtype, torch.float32)
    tile = min(MOST_QUERIES, max(SMALLEST_TILE, triton.next_power_of_2(num_queries)))
    splits = triton.cdiv(num_keys, KEYS_PER_SPLIT)
    log_sums = torch.empty(splits, heads, num_queries, dtype=wide, device=q_HND.device)
    sums = torch.empty(heads, num_keys, dtype=wide, device=q_HND.device)
    counts = places_N if log_counts_KT is None else log_counts_KT.contiguous()
    arguments = (q_HND, k_KTD, places_N, counts)
    numbers = (dim**-0.5, num_queries, num_keys, k_KTD.stride(0), k_KTD.stride(1))
    sizes = {
        "GROUP": heads // len(k_KTD),
        "HAS_COUNTS": log_counts_KT is not None,
        "BLOCK_M": tile,
        "BLOCK_N": BLOCK_KEYS,
        "DIM": dim,
        "BLOCK_D": max(SMALLEST_TILE, triton.next_power_of_2(dim)),
        "WIDE": accumulator(q_HND.dtype),
    }
    _log_sums[(splits, triton.cdiv(num_queries, tile), heads)](
        *arguments, log_sums, *numbers, KEYS=KEYS_PER_SPLIT, **sizes
    )
    log_sums = torch.logsumexp(log_sums, 0)
    _column_sums[(triton.cdiv(num_keys, BLOCK_KEYS), heads)](
        *arguments, log_sums, sums, *numbers, **sizes
    )
    return sums


@triton.jit
def _queries(
    q, places, first, num_queries, BLOCK_M: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Some queries of one head, and the last key that each sees; -1 where there is no query."""
    query, column = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    is_query = query < num_queries
    inside = is_query[:, None] & (column < DIM)[None, :]
    rows = tl.load(q + query[:, None] * DIM + column[None, :], mask=inside, other=0.0)
    return query, rows, tl.load(places + query, mask=is_query, other=-1)


@triton.jit
def _logits(
    rows,
    last,
    keys,
    counts,
    slot,
    num_keys,
    scale,
    token_stride,
    HAS_COUNTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Logits of some queries over some keys, -inf where a query does not see a key."""
    column, is_key = tl.arange(0, BLOCK_D), slot < num_keys
    source = keys + slot[:, None].to(tl.int64) * token_stride + column[None, :]
    key = tl.load(source, mask=is_key[:, None] & (column < DIM)[None, :], other=0.0)
    logits = tl.zeros((BLOCK_M, BLOCK_N), WIDE)
    logits = tl.dot(rows, tl.trans(key), logits, "ieee", out_dtype=WIDE) * scale
    if HAS_COUNTS:
        logits += tl.load(counts + slot, mask=is_key, other=0.0)[None, :]
    visible = is_key[None, :] & (slot[None, :] <= last[:, None])
    return tl.where(visible, logits, float("-inf"))


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def _log_sums(
    q,
    keys,
    places,
    counts,
    log_sums,
    scale,
    num_queries,
    num_keys,
    head_stride,
    token_stride,
    GROUP: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    split, head = tl.program_id(0), tl.program_id(2).to(tl.int64)
    keys += head // GROUP * head_stride
    if HAS_COUNTS:
        counts += head // GROUP * num_keys
    first, own = tl.program_id(1) * BLOCK_M, q + head * num_queries * DIM
    query, rows, last = _queries(own, places, first, num_queries, BLOCK_M, DIM, BLOCK_D)
    low = split * KEYS
    high = tl.minimum(tl.minimum(low + KEYS, num_keys), tl.max(last, 0) + 1)
    peak = tl.full((BLOCK_M,), float("-inf"), WIDE)
    total = tl.zeros((BLOCK_M,), WIDE)
    for begin in range(low, high.to(tl.int32), BLOCK_N):
        slot = begin + tl.arange(0, BLOCK_N)
        logits = _logits(
            rows, last, keys, counts, slot, num_keys, scale, token_stride,
            HAS_COUNTS, BLOCK_M, BLOCK_N, DIM, BLOCK_D, WIDE,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(logits, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(peak - level) + tl.sum(tl.exp(logits - level[:, None]), 1)
        peak = higher
    log_sum = peak + tl.log(tl.where(total > 0, total, 1.0))
    target = log_sums + (split * tl.num_programs(2) + head) * num_queries + query
    tl.store(target, log_sum, mask=query < num_queries)


@triton.jit(do_not_specialize=["num_queries", "num_keys"])
def _column_sums(
    q,
    keys,
    places,
    counts,
    log_sums,
    sums,
    scale,
    num_queries,
    num_keys,
    head_stride,
    token_stride,
    GROUP: tl.constexpr,
    HAS_COUNTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    begin, head = tl.program_id(0) * BLOCK_N, tl.program_id(1).to(tl.int64)
    keys += head // GROUP * head_stride
    if HAS_COUNTS:
        counts += head // GROUP * num_keys
    slot, own = begin + tl.arange(0, BLOCK_N), q + head * num_queries * DIM
    column_sums = tl.zeros((BLOCK_N,), WIDE)
    for first in range(0, num_queries, BLOCK_M):
        query, rows, last = _queries(own, places, first, num_queries, BLOCK_M, DIM, BLOCK_D)
        if tl.max(last, 0) >= begin:
            logits = _logits(
                rows, last, keys, counts, slot, num_keys, scale, token_stride,
                HAS_COUNTS, BLOCK_M, BLOCK_N, DIM, BLOCK_D, WIDE,
            )  # fmt: skip
            is_query = query < num_queries
            log_sum = tl.load(log_sums + head * num_queries + query, mask=is_query, other=0.0)
            column_sums += tl.sum(tl.exp(logits - log_sum[:, None]), 0)
    tl.store(sums + head * num_keys + slot, column_sums, mask=slot < num_keys)
