"""The architecture that a Hugging Face config names, among those that `models/` knows."""

from __future__ import annotations

from scheduler.domain.errors import InvalidInput
from workers.hf_config import HfConfig
from workers.model import DecoderConfig
from workers.models import MODELS


def decoder_config(config: HfConfig) -> DecoderConfig:
    """The decoder behind a Hugging Face config, by its `architectures` entry.

    Raises:
        UnknownPlugin: no file in `models/` knows the architecture.
        InvalidInput: the config names no architecture.
    """
    if len(config.architectures) != 1:
        raise InvalidInput(f"config.json must name one architecture, not {config.architectures}.")
    return MODELS[config.architectures[0]].decoder_config(config)
