"""Causal cross-entropy in vocabulary-row chunks, with its gradient made on the spot.

The logits of a chunk exist once, for the loss and for the gradient; what stays is the gradient of
the hidden states, so no vocabulary-wide tensor outlives the call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.decoder import Decoder
from workers.layers import rms_norm_backward
from workers.train_pack import LossSums

MAX_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27}  # of one chunk; 16 MiB in float32 on a CPU


def window_loss(
    decoder: Decoder, x: Tensor, targets: Tensor, weights: Tensor, *, wants_grad: bool
) -> tuple[LossSums, Tensor]:
    """Weighted loss sums of rows, and the gradient of the summed loss with respect to `x`.

    Shapes:
        x: (T, hidden), before the final norm; targets, weights: (T,).
        returns: sums, and (T, hidden) in the dtype of x (empty without `wants_grad`).
    """
    sums = LossSums(tokens=len(x))
    grad = torch.zeros_like(x) if wants_grad else x.new_empty(0)
    trained = weights.nonzero().flatten()
    chunk = max(1, MAX_LOGITS[x.device.type] // decoder.config.vocab_size)
    for rows in trained.split(chunk):
        part, grad_rows = _chunk(decoder, x[rows], targets[rows], weights[rows], wants_grad)
        sums.add(part)
        if wants_grad:
            grad[rows] = grad_rows
    return sums, grad


def _chunk(
    decoder: Decoder, x: Tensor, targets: Tensor, weights: Tensor, wants_grad: bool
) -> tuple[LossSums, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    norm, eps = decoder.weights.final_norm, decoder.config.rms_eps
    logits = decoder.logits(x).to(wide)
    weights = weights.to(wide)
    correct = (logits.argmax(-1) == targets).to(wide)
    logprobs = torch.log_softmax(logits, dim=-1)
    loss = -logprobs.gather(1, targets[:, None])[:, 0]
    parts = ((loss * weights).sum(), (correct * weights).sum(), weights.sum())
    sums = LossSums(*torch.stack(parts).tolist())
    if not wants_grad:
        return sums, x
    grad = logprobs.exp_()
    grad.scatter_add_(1, targets[:, None], -torch.ones_like(grad[:, :1]))
    grad_normed = decoder.weights.lm_head.input_grad((grad * weights[:, None]).to(x.dtype))
    return sums, rms_norm_backward(grad_normed, x, norm, eps)
