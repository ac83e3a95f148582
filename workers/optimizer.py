"""Optimizers over one flat parameter vector; the state is tensors that a checkpoint can hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from scheduler.domain.registry import PluginConfig, Registry


class Optimizer(ABC):
    """One optimizer with one configuration, over one flat float32 vector."""

    class Config(PluginConfig):
        """Options of the optimizer."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def init_state(self, params: Tensor) -> dict[str, Tensor]:
        """Fresh state for `params`, flat like them."""

    @abstractmethod
    def step(
        self, params: Tensor, grads: Tensor, state: dict[str, Tensor], lr: float, step: int
    ) -> None:
        """Update `params` and `state` in place; `step` counts from 1."""


OPTIMIZERS: Registry[Optimizer] = Registry("optimizer")
