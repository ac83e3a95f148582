"""From a fused qkv output to heads, at their positions, K and V of inference in pages; and back.

One kernel where the machine has it, the torch code below elsewhere.
Shape suffixes: T rows, F qkv features, H query heads, K KV heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.qkv_rows import HeadNorms, PageRows, QkvShape
from workers.layers import rms_norm, rms_norm_backward, rotate, rotate_backward


def place_heads(
    qkv_TF: Tensor,
    shape: QkvShape,
    norms: HeadNorms | None,
    turn: tuple[Tensor, Tensor],
    pages: PageRows | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value heads (T, H or K, D) of all rows; K and V of some go to their pages.

    Queries and keys are normalised, where there are norms, and turned by cos and sin
    (T, 1, D / 2); values are as they were.
    """
    heads, v = qkv_TF.unflatten(-1, (-1, shape.dim)).split((shape.turned, shape.kv_heads), dim=1)
    kernels = gpu_kernels_for(qkv_TF)
    if kernels is not None:
        q, k = kernels.place_heads(qkv_TF, shape, norms, turn, pages).split(
            (shape.heads, shape.kv_heads), dim=1
        )
        return q, k, v
    q, k = rotate(_normalised(heads, shape, norms), *turn).split(
        (shape.heads, shape.kv_heads), dim=1
    )
    if pages is not None:
        pages.keys_BKPD[pages.blocks_T, :, pages.offsets_T] = k[pages.rows]
        pages.values_BKPD[pages.blocks_T, :, pages.offsets_T] = v[pages.rows]
    return q, k, v


def place_heads_backward(
    grad_q: Tensor,
    sums: tuple[Tensor, Tensor],
    shape: QkvShape,
    norms: HeadNorms | None,
    turn: tuple[Tensor, Tensor],
    heads: Tensor | None,
) -> Tensor:
    """Gradient of the qkv output, (T, F), from those of its heads.

    Shapes:
        grad_q: of the queries, (T, H, D), contiguous.
        sums: of keys and values, (T, K, D) each, in the wide dtype that they were summed in.
        heads: query and key heads as they came in, (T, H + K, D); not read without norms.
    """
    kernels = gpu_kernels_for(grad_q)
    if kernels is not None:
        return kernels.place_heads_backward(grad_q, sums, shape, norms, turn, heads)
    grad_k, grad_v = (total.to(grad_q.dtype) for total in sums)
    grad = rotate_backward(torch.cat((grad_q, grad_k), dim=1), *turn)
    if norms is not None and heads is not None:
        sizes = (shape.heads, shape.kv_heads)
        pairs = zip(grad.split(sizes, dim=1), heads.split(sizes, dim=1), strict=True)
        weights = (norms.query, norms.key)
        normed = [
            rms_norm_backward(part, x, weight, norms.eps)
            for (part, x), weight in zip(pairs, weights, strict=True)
        ]
        grad = torch.cat(normed, dim=1)
    return torch.cat((grad.flatten(1), grad_v.flatten(1)), dim=1)


def _normalised(heads_THD: Tensor, shape: QkvShape, norms: HeadNorms | None) -> Tensor:
    if norms is None:
        return heads_THD
    q, k = heads_THD.split((shape.heads, shape.kv_heads), dim=1)
    normed = rms_norm(q, norms.query, norms.eps), rms_norm(k, norms.key, norms.eps)
    return torch.cat(normed, dim=1)
