"""The base model's weight at one site, whole, out of the fused linears of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.adapter_sites import Site
from workers.decoder import Decoder
from workers.shard import CUT


class SiteWeights:
    """Weights of a decoder by site; every rank of its group must ask for the same ones."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def __call__(self, site: Site) -> Tensor:
        """(out_features, in_features), in float32 or wider."""
        decoder = self._decoder
        part = decoder.arena.linears[site.index].slices[site.place]
        held = decoder.weights.layers[site.layer].linears[site.index].weight
        rows = held[part.start : part.stop]
        wide = torch.promote_types(rows.dtype, torch.float32)
        return decoder.group.gather(rows, CUT[site.index]).to(wide)
