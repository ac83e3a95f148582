"""Causal cross-entropy in vocabulary-row chunks, with its gradient made on the spot.

The logits of a chunk exist once, for the loss and for the gradient; what stays is the gradient of
the hidden states, so no vocabulary-wide tensor outlives the call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.decoder import Decoder
from workers.device_copy import upload
from workers.layers import rms_norm_backward
from workers.train_pack import PackTokens

MAX_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27}  # of one chunk; 16 MiB in float32 on a CPU


def window_loss(
    decoder: Decoder, x: Tensor, tokens: PackTokens, start: int, *, wants_grad: bool
) -> tuple[Tensor, Tensor]:
    """Weighted loss sums of a pack's tokens from `start` on, and the gradient of the summed loss.

    Nothing is read from the device.

    Shapes:
        x: (T, hidden), before the final norm.
        returns: (3,) float64, the sums of loss, correct and weight; and (T, hidden) in the dtype
            of x (empty without `wants_grad`).
    """
    stop = start + len(x)
    targets, weights = tokens.targets[start:stop], tokens.weights[start:stop]
    sums = torch.zeros(3, dtype=torch.float64, device=x.device)
    grad = torch.zeros_like(x) if wants_grad else x.new_empty(0)
    trained = upload(tokens.trained_rows(start, stop), torch.int64, x.device)
    chunk = max(1, MAX_LOGITS[x.device.type] // decoder.config.vocab_size)
    for rows in trained.split(chunk):
        part, grad_rows = _chunk(decoder, x[rows], targets[rows], weights[rows], wants_grad)
        sums += part
        if wants_grad:
            grad[rows] = grad_rows
    return sums, grad


def _chunk(
    decoder: Decoder, x: Tensor, targets: Tensor, weights: Tensor, wants_grad: bool
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    norm, eps = decoder.weights.final_norm, decoder.config.rms_eps
    logits = decoder.logits(x).to(wide)
    weights = weights.to(wide)
    correct = (logits.argmax(-1) == targets).to(wide)
    logprobs = torch.log_softmax(logits, dim=-1)
    loss = -logprobs.gather(1, targets[:, None])[:, 0]
    sums = torch.stack(((loss * weights).sum(), (correct * weights).sum(), weights.sum()))
    if not wants_grad:
        return sums, x
    grad = logprobs.exp_()
    grad.scatter_add_(1, targets[:, None], -torch.ones_like(grad[:, :1]))
    grad_normed = decoder.weights.lm_head.input_grad((grad * weights[:, None]).to(x.dtype))
    return sums, rms_norm_backward(grad_normed, x, norm, eps)
