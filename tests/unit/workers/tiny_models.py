"""Tiny random models of every family, as transformers models and as ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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

from workers.adapter_arena import AdapterArena
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder, load_weights
from workers.decoder import Decoder
from workers.hf_config import HfConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CPU = torch.device("cpu")
VOCAB_SIZE = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE))


def _llama_tied() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))


def _mistral() -> PreTrainedModel:
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=9))


def _mistral_wide() -> PreTrainedModel:
    """Heads of 16 numbers, which the CPU's attention kernels take."""
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=9, head_dim=16))


def _qwen2() -> PreTrainedModel:
    config = Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=9, max_window_layers=2)
    return Qwen2ForCausalLM(config)


def _qwen3() -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "llama_tied": _llama_tied,
    "mistral": _mistral,
    "mistral_wide": _mistral_wide,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
}


@dataclass
class TinyModel:
    """The same random weights behind transformers' model and our decoder."""

    oracle: PreTrainedModel
    decoder: Decoder
    folder: Path


def save_oracle(family: str, folder: Path) -> PreTrainedModel:
    """Write one tiny model as a Hugging Face folder."""
    torch.manual_seed(0)
    oracle = FAMILIES[family]()
    torch.nn.Module.train(oracle, mode=False)
    for name, parameter in oracle.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    oracle.save_pretrained(folder)
    return oracle


def load_decoder(
    oracle: PreTrainedModel, folder: Path, dtype: torch.dtype, num_columns: int
) -> Decoder:
    """Our decoder over the weights in `folder`."""
    config = decoder_config(HfConfig.model_validate(oracle.config.to_dict()))
    weights = load_weights(WeightFolder(folder), config, dtype, CPU)
    return Decoder(config, weights, AdapterArena(config, num_columns, dtype, CPU))


def make_model(
    family: str, folder: Path, dtype: torch.dtype = torch.float32, num_columns: int = 64
) -> TinyModel:
    """Build, save and load one tiny model."""
    oracle = save_oracle(family, folder)
    return TinyModel(oracle, load_decoder(oracle, folder, dtype, num_columns), folder)
