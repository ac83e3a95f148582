"""LoRA: y += (alpha / r) * (x A^T) B^T, with A and B trained and W frozen.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1; file layout of Hugging Face peft.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from pydantic import Field, ValidationError

from scheduler.artefact.lora_config import PLAIN, read_lora_options
from scheduler.domain.errors import InvalidInput
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

    peft_type = "LORA"
    config: Config

    @property
    def rank(self) -> int:
        """See PeftMethod."""
        return self.config.rank

    @property
    def modules(self) -> frozenset[str]:
        """See PeftMethod."""
        return frozenset(self.config.target_modules)

    @property
    def scale(self) -> float:
        """Factor on the update."""
        rank = self.config.rank
        return self.config.alpha / (math.sqrt(rank) if self.config.use_rslora else rank)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See PeftMethod."""
        shapes: dict[str, tuple[int, ...]] = {}
        for layer, _, linear, _, part in self._parts():
            shapes[_name(layer, part.module, "A")] = (self.rank, linear.in_features)
            shapes[_name(layer, part.module, "B")] = (part.stop - part.start, self.rank)
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
            a, b = self._factors(params, layer, part)
            block = slice(j * self.rank, (j + 1) * self.rank)
            term = into[layer, index]
            term.shrink_CI[block] = a
            torch.mul(b.T, self.scale, out=term.expand_RO[j])

    def pull_back(self, grads: Terms, into: Params) -> None:
        """DA is a block of d_shrink; dB is scale times the transposed d_expand."""
        for layer, index, _, j, part in self._parts():
            a, b = self._factors(into, layer, part)
            block = slice(j * self.rank, (j + 1) * self.rank)
            term = grads[layer, index]
            a.copy_(term.shrink_CI[block])
            torch.mul(term.expand_RO[j].T, self.scale, out=b)

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

    @staticmethod
    def _factors(
        params: Params, layer: int, part: LinearSlice
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return params[_name(layer, part.module, "A")], params[_name(layer, part.module, "B")]


def _name(layer: int, module: str, factor: str) -> str:
    """A parameter's name in adapter_model.safetensors."""
    return f"base_model.model.model.layers.{layer}.{MODULE_PATHS[module]}.lora_{factor}.weight"
