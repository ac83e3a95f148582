"""Sites: the projections of all layers that an adapter may change, as files name them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from workers.adapter_arena import Term
from workers.middle import through
from workers.model import MODULE_PATHS, DecoderConfig, FusedLinear, LinearSlice, fused_linears

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, slots=True)
class Site:
    """Projection `place` of linear `index` in a layer."""

    layer: int
    index: int
    place: int
    linear: FusedLinear
    part: LinearSlice

    @property
    def key(self) -> tuple[int, int]:
        """Where the terms of an adapter have its linear."""
        return self.layer, self.index

    @property
    def name(self) -> str:
        """What the names of its parameters in adapter_model.safetensors begin with."""
        return f"base_model.model.model.layers.{self.layer}.{MODULE_PATHS[self.part.module]}"

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs of its weight."""
        return self.part.num_features, self.linear.in_features

    def shrink(self, term: Term, rank: int) -> Tensor:
        """Its block of a term's shrink, (rank, in_features)."""
        return term.shrink_CI[self.place * rank : (self.place + 1) * rank]

    def joined_shrink(self, term: Term, rank: int) -> Tensor:
        """The same times its middle: what it adds to the weight is expand.T @ this."""
        shrink = self.shrink(term, rank)
        if not term.middle_RM:
            return shrink
        return through(shrink.T, term.middle_RM[self.place]).T


def sites(model: DecoderConfig, modules: frozenset[str]) -> Iterator[Site]:
    """The sites of some projections, layer by layer."""
    linears = fused_linears(model)
    for layer in range(model.num_layers):
        for index, linear in enumerate(linears):
            for place, part in enumerate(linear.slices):
                if part.module in modules:
                    yield Site(layer, index, place, linear, part)
