"""Mistral: Llama with an optional sliding window.  Source: Jiang et al. 2023, arXiv:2310.06825."""

from __future__ import annotations

from transformers import MistralConfig, PretrainedConfig

from workers.family import base_config, require
from workers.model import MODELS, DecoderConfig, ModelFamily


@MODELS.register("MistralForCausalLM")
class Mistral(ModelFamily):
    """Mistral 7B and its kin: every layer has the same window, or none."""

    @classmethod
    def decoder_config(cls, config: PretrainedConfig) -> DecoderConfig:
        """See ModelFamily."""
        require(isinstance(config, MistralConfig), "config.json is not a Mistral configuration.")
        return base_config(config, windows=(config.sliding_window,) * config.num_hidden_layers)
