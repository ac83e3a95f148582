"""Qwen2: Llama with biases on q, k and v, and per-layer windows.  Source: arXiv:2407.10671."""

from __future__ import annotations

from transformers import PretrainedConfig, Qwen2Config

from workers.family import base_config, layer_windows, require
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("Qwen2ForCausalLM")
class Qwen2(ModelFamily):
    """Qwen2 and Qwen2.5."""

    @classmethod
    def decoder_config(cls, config: PretrainedConfig) -> DecoderConfig:
        """See ModelFamily."""
        require(isinstance(config, Qwen2Config), "config.json is not a Qwen2 configuration.")
        return base_config(config, has_qkv_bias=True, windows=layer_windows(config))
