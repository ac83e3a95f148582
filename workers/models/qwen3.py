"""Qwen3: Llama with a norm on every query and key head.  Source: arXiv:2505.09388."""

from __future__ import annotations

from workers.family import base_config, require
from workers.hf_config import HfConfig
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("Qwen3ForCausalLM")
class Qwen3(ModelFamily):
    """The dense Qwen3 models."""

    @classmethod
    def decoder_config(cls, config: HfConfig) -> DecoderConfig:
        """See ModelFamily."""
        require(not config.attention_bias, "Qwen3 with attention_bias is not supported.")
        return base_config(config, has_qk_norm=True, windows=config.layer_windows())
