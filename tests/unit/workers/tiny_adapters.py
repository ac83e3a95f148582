"""Trained-looking LoRA adapters of a tiny decoder."""

from __future__ import annotations

from typing import Any

import torch

from workers.adapter_archive import initial_params
from workers.adapter_file import LoadedAdapter
from workers.architecture import decoder_config
from workers.hf_config import HfConfig
from workers.model import DecoderConfig
from workers.peft_methods.lora import Lora

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
MODULES = ("q_proj", "v_proj", "down_proj")


def tiny_config() -> DecoderConfig:
    """The shapes of a tiny Llama."""
    return decoder_config(HfConfig.model_validate(SHAPE))


def make_lora(
    seed: int,
    rank: int = 4,
    modules: tuple[str, ...] = MODULES,
    alpha: float = 8.0,
    init_seed: int | None = None,
) -> LoadedAdapter:
    """A LoRA with random changes of A (all the same A for one `init_seed`) and a random B."""
    config = Lora.Config.model_validate({"rank": rank, "alpha": alpha, "target_modules": modules})
    method = Lora(config, tiny_config())
    params = initial_params(method, seed if init_seed is None else init_seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in params.items():
        noise = 0.02 * torch.randn(tensor.shape, generator=generator)
        if ".lora_B." in name or init_seed is None:
            tensor.add_(noise)
    return LoadedAdapter(method, params)
