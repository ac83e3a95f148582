"""Mistral: Llama with an optional sliding window.  Source: Jiang et al. 2023, arXiv:2310.06825."""

from __future__ import annotations

from workers.family import base_config
from workers.hf_config import HfConfig
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("MistralForCausalLM")
class Mistral(ModelFamily):
    """Mistral 7B and its kin: every layer has the same window, or none."""

    @classmethod
    def decoder_config(cls, config: HfConfig) -> DecoderConfig:
        """See ModelFamily."""
        return base_config(config, windows=(config.sliding_window,) * config.num_hidden_layers)
