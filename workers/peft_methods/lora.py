"""LoRA: y += (alpha / r) * (x A^T) B^T, with A and B trained and W frozen.

Sites (projections of layers) may differ in rank and alpha; a slot takes the largest rank, and what
a smaller one leaves of its block is zero.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; file layout of Hugging Face peft.
"""

from __future__ import annotations

import math
from typing import Any, get_args

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from scheduler.artefact.lora_config import PLAIN, Alphas, Ranks, at_site, read_lora_options
from scheduler.domain.errors import InvalidInput
from workers.adapter_sites import Target, sites
from workers.model import DecoderConfig
from workers.peft_method import PEFT_METHODS, Params, PeftMethod, Terms, generator


@PEFT_METHODS.register("lora")
class Lora(PeftMethod):
    """Low-rank factors on any of the seven projections."""

    class Config(PeftMethod.Config):
        """Options of LoRA."""

        rank: int = Field(16, ge=1, le=256, description="Rank r of A and B.")
        alpha: float = Field(32.0, gt=0, le=4096, description="The update is scaled by alpha / r.")
        target_modules: tuple[Target, ...] = Field(
            get_args(Target), min_length=1, description="Projections that get an adapter."
        )
        use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r) instead.")
        rank_pattern: Ranks = Field(
            default_factory=dict,
            description="Ranks of single sites, by the end of their path: `q_proj`, "
            "`layers.0.mlp.up_proj`.",
        )
        alpha_pattern: Alphas = Field(default_factory=dict, description="Alphas, likewise.")

    peft_type = "LORA"
    config: Config

    def __init__(self, config: Config, model: DecoderConfig) -> None:
        super().__init__(config, model)
        self._sites = list(sites(model, self.modules))
        names = [site.name for site in self._sites]
        self._ranks = {name: at_site(name, config.rank_pattern, config.rank) for name in names}
        self._alphas = {name: at_site(name, config.alpha_pattern, config.alpha) for name in names}
        self._rank = max(self._ranks.values())

    @property
    def rank(self) -> int:
        """See PeftMethod: the largest of all sites."""
        return self._rank

    @property
    def modules(self) -> frozenset[str]:
        """See PeftMethod."""
        return frozenset(self.config.target_modules)

    def scale(self, site: str) -> float:
        """Factor on a site's update; a site is named as its parameters begin."""
        rank = self._ranks[site]
        return self._alphas[site] / (math.sqrt(rank) if self.config.use_rslora else rank)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See PeftMethod."""
        shapes: dict[str, tuple[int, ...]] = {}
        for site in self._sites:
            rank, (outputs, inputs) = self._ranks[site.name], site.shape
            shapes[f"{site.name}.lora_A.weight"] = (rank, inputs)
            shapes[f"{site.name}.lora_B.weight"] = (outputs, rank)
        return shapes

    def init(self, params: Params, seed: int) -> None:
        """A uniform as in peft (Kaiming with a = sqrt 5), B zero."""
        for name, tensor in params.items():
            if ".lora_B." in name:
                tensor.zero_()
            else:
                bound = 1 / math.sqrt(tensor.shape[1])
                drawn = torch.rand(tensor.shape, generator=generator(seed, name))
                tensor.copy_((drawn * 2 - 1) * bound)

    def lower(self, params: Params, into: Terms) -> None:
        """Stack A by projection; put scale * B^T beside it."""
        shrinks, expands = self._own_blocks(into)
        factors = [_factors(params, site.name) for site in self._sites]
        torch._foreach_copy_(shrinks, [a for a, _ in factors])
        scaled = torch._foreach_mul([b.T for _, b in factors], self._scales)
        torch._foreach_copy_(expands, scaled)
        self._clear_rest(into)

    def pull_back(self, grads: Terms, into: Params) -> None:
        """DA is a block of d_shrink; dB is scale times the transposed d_expand."""
        shrinks, expands = self._own_blocks(grads)
        factors = [_factors(into, site.name) for site in self._sites]
        torch._foreach_copy_([a for a, _ in factors], shrinks)
        scaled = torch._foreach_mul(expands, self._scales)
        torch._foreach_copy_([b for _, b in factors], [grad.T for grad in scaled])

    @property
    def _scales(self) -> list[float]:
        return [self.scale(site.name) for site in self._sites]

    def _own_blocks(self, terms: Terms) -> tuple[list[Tensor], list[Tensor]]:
        """Rows of the sites in their shrinks and expands, as many as each has ranks."""
        shrinks, expands = [], []
        for site in self._sites:
            term, rank = terms[site.key], self._ranks[site.name]
            shrinks.append(site.shrink(term, self.rank)[:rank])
            expands.append(term.expand_RO[site.place][:rank])
        return shrinks, expands

    def _clear_rest(self, terms: Terms) -> None:
        """What smaller ranks leave of their blocks."""
        for site in self._sites:
            term, rank = terms[site.key], self._ranks[site.name]
            if rank < self.rank:
                site.shrink(term, self.rank)[rank:] = 0.0
                term.expand_RO[site.place][rank:] = 0.0

    def peft_config(self) -> dict[str, Any]:
        """See PeftMethod."""
        return {
            "peft_type": self.peft_type,
            "task_type": "CAUSAL_LM",
            "r": self.config.rank,
            "lora_alpha": self.config.alpha,
            "lora_dropout": 0.0,
            "target_modules": sorted(self.config.target_modules),
            "use_rslora": self.config.use_rslora,
            "rank_pattern": self.config.rank_pattern,
            "alpha_pattern": self.config.alpha_pattern,
            "inference_mode": True,
            **PLAIN,
        }

    @classmethod
    def from_peft_config(cls, config: dict[str, Any], model: DecoderConfig) -> Lora:
        """See PeftMethod."""
        plain = read_lora_options(config)
        try:
            options = cls.Config.model_validate(plain.model_dump())
        except ValidationError as error:
            raise InvalidInput(f"adapter_config.json is not a plain LoRA: {error}.") from None
        return cls(options, model)


def _factors(params: Params, site: str) -> tuple[Tensor, Tensor]:
    return params[f"{site}.lora_A.weight"], params[f"{site}.lora_B.weight"]
