"""Tiny random models of every family, as transformers models and as ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import workers.models
import workers.optimizers
import workers.peft_methods  # noqa: F401
from workers.adapter_arena import AdapterArena
from workers.base_weights import WeightFolder, load_weights
from workers.decoder import Decoder
from workers.model import decoder_config

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}

FAMILIES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "llama_plain": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=9)),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
}


@dataclass
class TinyModel:
    """The same random weights behind transformers' model and our decoder."""

    oracle: PreTrainedModel
    decoder: Decoder
    folder: Path


def make_model(
    family: str, folder: Path, dtype: torch.dtype = torch.float32, num_columns: int = 64
) -> TinyModel:
    """Build, save and load one tiny model."""
    torch.manual_seed(0)
    oracle = FAMILIES[family]().eval()
    for name, parameter in oracle.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    oracle.save_pretrained(folder)
    oracle = oracle.to(dtype)
    config = decoder_config(oracle.config)
    device = torch.device("cpu")
    weights = load_weights(WeightFolder(folder), config, dtype, device)
    arena = AdapterArena(config, num_columns, dtype, device)
    return TinyModel(oracle, Decoder(config, weights, arena), folder)
