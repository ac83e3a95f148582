"""A transformers model under peft, with the adapters that every system here trains or serves."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

RANK = 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def fastest_dtype() -> torch.dtype:
    """Bfloat16 where the processor multiplies it, float32 elsewhere."""
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def named_dtype(name: str) -> torch.dtype:
    """A dtype by its name; `auto` is the fastest."""
    if name == "auto":
        return fastest_dtype()
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def load_trainable(folder: str, dtype: torch.dtype, *, is_checkpointed: bool) -> PeftModel:
    """A model with one fresh LoRA on all linears, in training mode.

    The adapter has the base's dtype: peft's float32 copy costs a cast of every activation.
    """
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS)
    model = get_peft_model(base, config, autocast_adapter_dtype=False)
    if is_checkpointed:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(  # its newer name is not in older releases
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    model.train()
    return model
