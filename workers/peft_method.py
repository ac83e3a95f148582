"""A parameter-efficient method: its parameters, and how they become terms of the base's linears.

Training keeps a method's parameters in one flat float32 master vector; the engine computes with
terms (`adapter_arena.Term`). `lower` maps parameters to terms, `pull_back` maps the terms'
gradients to the parameters'. Both run once per optimizer step, never per token.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from scheduler.domain.registry import PluginConfig, Registry
from workers.adapter_arena import AdapterColumns, Term
from workers.adapter_sites import Site
from workers.model import DecoderConfig
from workers.term_grads import SHRINK_AND_EXPAND, TermParts

Params = dict[str, Tensor]
Terms = dict[tuple[int, int], Term]
SiteWeight = Callable[[Site], Tensor]


class PeftMethod(ABC):
    """One method with one configuration, over one base model."""

    class Config(PluginConfig):
        """Options of the method."""

    peft_type: ClassVar[str]

    def __init__(self, config: Any, model: DecoderConfig) -> None:
        self.config = config
        self.model = model

    @property
    @abstractmethod
    def rank(self) -> int:
        """Rank columns that one adapter takes in the arena."""

    @property
    @abstractmethod
    def modules(self) -> frozenset[str]:
        """Projections that the method adapts."""

    @property
    def middle(self) -> int:
        """Numbers in a row of each projection's middle: 1 or the rank; 0: it has none."""
        return 0

    def columns(self, offset: int = 0) -> AdapterColumns:
        """The method's columns in an arena, from `offset` on."""
        return AdapterColumns(offset, self.rank, self.modules, self.middle)

    @property
    def trained_parts(self) -> TermParts:
        """The matrices of a term whose gradients `pull_back` reads."""
        return SHRINK_AND_EXPAND

    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every trained parameter, under its name in a peft file."""

    def fixed_shapes(self) -> dict[str, tuple[int, ...]]:
        """The same of what lies beside them in the file, and is never trained."""
        return {}

    def file_shapes(self) -> dict[str, tuple[int, ...]]:
        """Everything in the file, trained parameters first."""
        return self.shapes() | self.fixed_shapes()

    @abstractmethod
    def init(self, params: Params, seed: int) -> None:
        """Fill fresh parameters; the adapter then changes nothing."""

    def make_fixed(self, params: Params, weight_of: SiteWeight) -> None:
        """Fill what is never trained, from weights of the base model (out_features, in_features).

        Raises:
            InvalidInput: the method cannot be used on this base model.
        """
        del params, weight_of

    @abstractmethod
    def lower(self, params: Params, into: Terms) -> None:
        """Write the terms of `params` over zeroed or older ones, in their dtype."""

    @abstractmethod
    def pull_back(self, grads: Terms, into: Params) -> None:
        """Gradients of the terms -> gradients of the parameters, written into `into`."""

    @abstractmethod
    def peft_config(self) -> dict[str, Any]:
        """The method's part of adapter_config.json."""

    @classmethod
    @abstractmethod
    def from_peft_config(cls, config: dict[str, Any], model: DecoderConfig) -> PeftMethod:
        """The method behind an adapter_config.json.

        Raises:
            InvalidInput: an option that this engine cannot compute.
        """


PEFT_METHODS: Registry[PeftMethod] = Registry("PEFT method")


def generator(seed: int, *site: object) -> torch.Generator:
    """Stateless randomness: the same (seed, site) draws the same numbers in any process."""
    text = ":".join(map(str, (seed, *site)))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
