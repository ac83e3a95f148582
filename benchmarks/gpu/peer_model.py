"""Transformers' own decoder of a shape that is measured."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu.setting import Setting, hf_llama


def peer_model(setting: Setting, shape: str, **changes: int) -> Any:
    """Random weights, made on the device; `changes` are to the shape's config."""
    config = LlamaConfig.from_dict(hf_llama(shape) | changes)
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    with torch.device(setting.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    return model.eval()
