"""AdamW: Adam with decoupled weight decay.  Source: Loshchilov & Hutter 2017, arXiv:1711.05101."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from workers.optimizer import OPTIMIZERS, Optimizer


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """The same update as torch.optim.AdamW."""

    class Config(Optimizer.Config):
        """Options of AdamW."""

        beta1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
        beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
        eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
        weight_decay: float = Field(0.0, ge=0, le=1, description="Decoupled decay per unit of lr.")

    config: Config

    def init_state(self, params: Tensor) -> dict[str, Tensor]:
        """First and second moments."""
        return {"exp_avg": torch.zeros_like(params), "exp_avg_sq": torch.zeros_like(params)}

    def step(
        self, params: Tensor, grads: Tensor, state: dict[str, Tensor], lr: float, step: int
    ) -> None:
        """See Optimizer."""
        c = self.config
        params.mul_(1 - lr * c.weight_decay)
        state["exp_avg"].lerp_(grads, 1 - c.beta1)
        state["exp_avg_sq"].mul_(c.beta2).addcmul_(grads, grads, value=1 - c.beta2)
        correction1, correction2 = 1 - c.beta1**step, 1 - c.beta2**step
        denominator = (state["exp_avg_sq"].sqrt() / correction2**0.5).add_(c.eps)
        params.addcdiv_(state["exp_avg"], denominator, value=-lr / correction1)
