"""The specification of every kernel: plain torch, one row at a time, slow and obvious.

Shape suffixes: T rows, I in_features, O out_features, C columns of one adapter's term, H heads,
K KV heads, D head_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def rms_norm(x_TI: Tensor, weight_I: Tensor, eps: float) -> Tensor:
    """Y = weight * x / sqrt(mean(x^2) + eps), row by row."""
    rows = [weight_I * row / torch.sqrt(row.pow(2).mean() + eps) for row in x_TI]
    return torch.stack(rows)


def rotate(x_THD: Tensor, positions_T: Tensor, inv_freq: Tensor) -> Tensor:
    """RoPE on (even half, odd half) pairs: element j turns with element j + D/2.

    Source: Su et al. 2021, arXiv:2104.09864, in the half-split form of Hugging Face.
    """
    half = x_THD.shape[-1] // 2
    angles = positions_T.to(inv_freq.dtype)[:, None, None] * inv_freq
    cos, sin = angles.cos().to(x_THD.dtype), angles.sin().to(x_THD.dtype)
    first, second = x_THD[..., :half], x_THD[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate and up lie side by side."""
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


class RowTerm(NamedTuple):
    """What one row's adapter is: shrink (C, I), expand (C, O), and what stands between them.

    The middle is the identity (None), a diagonal (C,) or a matrix (C, C).
    """

    shrink: Tensor
    expand: Tensor
    middle: Tensor | None = None


def shrink_expand(x_TI: Tensor, terms: list[RowTerm | None]) -> Tensor:
    """What each row's own adapter adds: (middle @ (shrink @ x[t])) @ expand; None adds zero."""
    out_features = next(term.expand.shape[1] for term in terms if term is not None)
    rows = []
    for x, term in zip(x_TI, terms, strict=True):
        if term is None:
            rows.append(x.new_zeros(out_features))
            continue
        shrunk = term.shrink @ x
        if term.middle is not None:
            diagonal = term.middle.dim() == 1
            shrunk = term.middle * shrunk if diagonal else term.middle @ shrunk
        rows.append(shrunk @ term.expand)
    return torch.stack(rows)


def attention(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    start: int,
    window: int | None,
    log_counts_KT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Causal attention of the queries at positions start, start+1, ... over keys from position 0.

    Log-counts, where there are any, are added to the logits of each key.

    Returns:
        Output (queries, H, D) and log-sum-exp (queries, H).
    """
    num_queries, num_heads, head_dim = q_THD.shape
    group_size = num_heads // k_TKD.shape[1]
    out = torch.zeros_like(q_THD)
    lse = q_THD.new_zeros(num_queries, num_heads)
    for i in range(num_queries):
        stop = start + i + 1
        first = 0 if window is None else max(0, stop - window)
        for head in range(num_heads):
            keys = k_TKD[first:stop, head // group_size]
            scores = keys @ q_THD[i, head] * head_dim**-0.5
            if log_counts_KT is not None:
                scores = scores + log_counts_KT[head // group_size, first:stop]
            lse[i, head] = torch.logsumexp(scores, 0)
            out[i, head] = torch.softmax(scores, 0) @ v_TKD[first:stop, head // group_size]
    return out, lse


def column_sums(
    q_THD: Tensor,
    k_TKD: Tensor,
    start: int,
    window: int | None,
    log_counts_KT: Tensor | None = None,
) -> Tensor:
    """Attention weights of the queries, summed over them and the heads of a group: (K, keys).

    Log-counts, where there are any, are added to the logits of each key.

    Source: SnapKV's votes, Li et al. 2024, arXiv:2404.14469.
    """
    num_queries, num_heads, head_dim = q_THD.shape
    kv_heads = k_TKD.shape[1]
    sums = q_THD.new_zeros(kv_heads, len(k_TKD))
    for i in range(num_queries):
        stop = start + i + 1
        first = 0 if window is None else max(0, stop - window)
        for head in range(num_heads):
            kv_head = head * kv_heads // num_heads
            scores = k_TKD[first:stop, kv_head] @ q_THD[i, head] * head_dim**-0.5
            if log_counts_KT is not None:
                scores = scores + log_counts_KT[kv_head, first:stop]
            sums[kv_head, first:stop] += torch.softmax(scores, 0)
    return sums


def likest_centre(
    key: Tensor, value: Tensor, centre_keys_CD: Tensor, centre_values_CD: Tensor
) -> tuple[int, float]:
    """The centre most like one token, the first of equals, and relu(cos keys) * relu(cos values).

    Source: EMS, Li et al. 2024, arXiv:2412.08521.
    """
    likeness = []
    for centre_key, centre_value in zip(centre_keys_CD, centre_values_CD, strict=True):
        keys = float(torch.cosine_similarity(key, centre_key, dim=0))
        values = float(torch.cosine_similarity(value, centre_value, dim=0))
        likeness.append(max(keys, 0.0) * max(values, 0.0))
    best = max(likeness)
    return likeness.index(best), best


def sample(logits_V: Tensor, temperature: float, uniform: float) -> int:
    """The likeliest token at temperature 0; else the first whose running sum passes the mark."""
    if temperature == 0:
        return int(logits_V.argmax())
    sums = torch.softmax(logits_V / temperature, 0).cumsum(0)
    past = (sums > uniform * sums[-1]).nonzero()
    return int(past[0]) if len(past) else len(sums) - 1
