"""Llama: RMSNorm, grouped-query attention, RoPE, SwiGLU.  Source: arXiv:2302.13971, 2307.09288."""

from __future__ import annotations

from workers.family import base_config, require
from workers.hf_config import HfConfig
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("LlamaForCausalLM")
class Llama(ModelFamily):
    """Llama 1 to 3 and the many checkpoints that share its layout."""

    @classmethod
    def decoder_config(cls, config: HfConfig) -> DecoderConfig:
        """See ModelFamily."""
        require(not config.attention_bias, "Llama with attention_bias is not supported.")
        require(not config.mlp_bias, "Llama with mlp_bias is not supported.")
        return base_config(config)
