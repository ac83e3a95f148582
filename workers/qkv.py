"""From a fused qkv output to heads: normalised, at their positions, K and V of inference in pages.

One kernel where the machine has it, the torch code below elsewhere.
Shape suffixes: T rows, F qkv features, H query heads, K KV heads, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.kernels.device_kernels import gpu_kernels_for
from workers.kernels.qkv_rows import HeadNorms, PageRows, QkvShape
from workers.layers import rms_norm, rotate


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


def _normalised(heads_THD: Tensor, shape: QkvShape, norms: HeadNorms | None) -> Tensor:
    if norms is None:
        return heads_THD
    q, k = heads_THD.split((shape.heads, shape.kv_heads), dim=1)
    normed = rms_norm(q, norms.query, norms.eps), rms_norm(k, norms.key, norms.eps)
    return torch.cat(normed, dim=1)
