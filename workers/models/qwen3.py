"""Qwen3: Llama with a norm on every query and key head.  Source: arXiv:2505.09388."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen3Config

from workers.family import base_config, layer_windows, require
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("Qwen3ForCausalLM")
class Qwen3(ModelFamily):
    """The dense Qwen3 models."""

    @classmethod
    def decoder_config(cls, config: PretrainedConfig) -> DecoderConfig:
        """See ModelFamily."""
        require(isinstance(config, Qwen3Config), "config.json is not a Qwen3 configuration.")
        require(not config.attention_bias, "Qwen3 with attention_bias is not supported.")
        return base_config(config, has_qk_norm=True, windows=layer_windows(config))
