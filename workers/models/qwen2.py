"""Qwen2: Llama with biases on q, k and v, and per-layer windows.  Source: arXiv:2407.10671."""

from __future__ import annotations

from workers.family import base_config
from workers.hf_config import HfConfig
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("Qwen2ForCausalLM")
class Qwen2(ModelFamily):
    """Qwen2 and Qwen2.5."""

    @classmethod
    def decoder_config(cls, config: HfConfig) -> DecoderConfig:
        """See ModelFamily."""
        return base_config(config, has_qkv_bias=True, windows=config.layer_windows())
