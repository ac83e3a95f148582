"""Which projections a base model has and how large they are, from its config.json alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scheduler.artefact.lora_config import at_site
from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.artefact.lora_config import LoraOptions

MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Projections:
    """The linears that an adapter may sit on.

    Attributes:
        num_layers: decoder layers; all are alike.
        sizes: projection -> (path in a layer, outputs, inputs).
    """

    num_layers: int
    sizes: dict[str, tuple[str, int, int]]

    def lora_shapes(self, options: LoraOptions) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor of a LoRA file of peft.

        Raises:
            InvalidInput: the base has no such projection.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for module in options.target_modules:
            if module not in self.sizes:
                known = ", ".join(self.sizes)
                raise InvalidInput(
                    f"target_modules names {module[:64]!r}; this base model has {known}.",
                    param="adapter_config.json",
                )
            path, num_outputs, num_inputs = self.sizes[module]
            for layer in range(self.num_layers):
                site = f"model.layers.{layer}.{path}"
                rank = at_site(site, options.rank_pattern, options.rank)
                shapes[f"base_model.model.{site}.lora_A.weight"] = (rank, num_inputs)
                shapes[f"base_model.model.{site}.lora_B.weight"] = (num_outputs, rank)
        return shapes


def read_projections(model_dir: Path) -> Projections:
    """Read `config.json` of a decoder of the Llama family.

    Raises:
        InvalidInput: it lacks an entry.
    """
    with (model_dir / "config.json").open("rb") as file:
        config: dict[str, Any] = json.loads(file.read(MAX_CONFIG_BYTES))
    try:
        return _projections(config)
    except (KeyError, TypeError, ZeroDivisionError):
        raise InvalidInput(
            "The base model's config.json does not tell the sizes of its projections; adapters "
            "cannot be imported for it.",
            param="model",
        ) from None


def _projections(config: dict[str, Any]) -> Projections:
    hidden, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    num_heads = int(config["num_attention_heads"])
    head_size = int(config.get("head_dim") or hidden // num_heads)
    queries = num_heads * head_size
    keys = int(config.get("num_key_value_heads") or num_heads) * head_size
    return Projections(
        num_layers=int(config["num_hidden_layers"]),
        sizes={
            "q_proj": ("self_attn.q_proj", queries, hidden),
            "k_proj": ("self_attn.k_proj", keys, hidden),
            "v_proj": ("self_attn.v_proj", keys, hidden),
            "o_proj": ("self_attn.o_proj", hidden, queries),
            "gate_proj": ("mlp.gate_proj", inner, hidden),
            "up_proj": ("mlp.up_proj", inner, hidden),
            "down_proj": ("mlp.down_proj", hidden, inner),
        },
    )
