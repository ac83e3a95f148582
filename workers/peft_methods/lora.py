"""LoRA: y += (alpha / r) * (x A^T) B^T, with A and B trained and W frozen.

Sites (projections of layers) may differ in rank and alpha; a slot takes the largest rank, and what
a smaller one leaves of its block is zero.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; file layout of Hugging Face peft.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from pydantic import Field, ValidationError

from scheduler.artefact.lora_config import PLAIN, Alphas, Ranks, at_site, read_lora_options
from scheduler.domain.errors import InvalidInput
from workers.adapter_arena import Term
from workers.model import MODULE_PATHS, DecoderConfig, FusedLinear, LinearSlice, fused_linears
from workers.peft_method import PEFT_METHODS, Params, PeftMethod, Terms, generator

Target = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
        sites = [
            _site(layer, module)
            for layer in range(model.num_layers)
            for module in config.target_modules
        ]
        self._ranks = {site: at_site(site, config.rank_pattern, config.rank) for site in sites}
        self._alphas = {site: at_site(site, config.alpha_pattern, config.alpha) for site in sites}
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
        for layer, _, linear, _, part in self._parts():
            site = _site(layer, part.module)
            rank = self._ranks[site]
            shapes[f"{site}.lora_A.weight"] = (rank, linear.in_features)
            shapes[f"{site}.lora_B.weight"] = (part.stop - part.start, rank)
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
        for layer, index, _, j, part in self._parts():
            site = _site(layer, part.module)
            a, b = _factors(params, site)
            shrink, expand = self._block(into[layer, index], j)
            rank = len(a)
            shrink[:rank], shrink[rank:] = a, 0.0
            torch.mul(b.T, self.scale(site), out=expand[:rank])
            expand[rank:] = 0.0

    def pull_back(self, grads: Terms, into: Params) -> None:
        """DA is a block of d_shrink; dB is scale times the transposed d_expand."""
        for layer, index, _, j, part in self._parts():
            site = _site(layer, part.module)
            a, b = _factors(into, site)
            shrink, expand = self._block(grads[layer, index], j)
            rank = len(a)
            a.copy_(shrink[:rank])
            torch.mul(expand[:rank].T, self.scale(site), out=b)

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

    def _parts(self) -> Iterator[tuple[int, int, FusedLinear, int, LinearSlice]]:
        """(layer, linear index, linear, place among its projections, projection), adapted ones."""
        linears = fused_linears(self.model)
        for layer in range(self.model.num_layers):
            for index, linear in enumerate(linears):
                for j, part in enumerate(linear.slices):
                    if part.module in self.modules:
                        yield layer, index, linear, j, part

    def _block(self, term: Term, j: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of A and of B^T that belong to a linear's projection j."""
        return term.shrink_CI[j * self.rank : (j + 1) * self.rank], term.expand_RO[j]


def _site(layer: int, module: str) -> str:
    """What the names of a projection's parameters in adapter_model.safetensors begin with."""
    return f"base_model.model.model.layers.{layer}.{MODULE_PATHS[module]}"


def _factors(params: Params, site: str) -> tuple[torch.Tensor, torch.Tensor]:
    return params[f"{site}.lora_A.weight"], params[f"{site}.lora_B.weight"]
