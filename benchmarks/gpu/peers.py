"""What a user would run instead, on the same card: transformers' generation and peft's training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from benchmarks.gpu.setting import Figures, Setting, hf_llama

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def peer_model(setting: Setting) -> Any:
    """Random weights in transformers' own decoder, made on the device."""
    config = LlamaConfig.from_dict(hf_llama(setting.largest))
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    with torch.device(setting.device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(before)
    return model.eval()


@torch.inference_mode()
def generate(setting: Setting) -> Figures:
    """Decode rate of `generate` by batch, with a context of half a thousand tokens."""
    model = peer_model(setting)
    prompt, tokens = (16, 4) if setting.is_tiny else (512, 32)
    result: Figures = {}
    for batch in (1, 4) if setting.is_tiny else (1, 16, 64):
        ids = torch.full((batch, prompt), 2, device=setting.device)

        def run(count: int, ids: torch.Tensor = ids) -> None:
            mask = torch.ones_like(ids)
            limits = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
            model.generate(ids, attention_mask=mask, pad_token_id=1, **limits)

        run(2)
        first_s, all_s = elapsed_s(setting, lambda: run(1)), elapsed_s(setting, lambda: run(tokens))
        result[str(batch)] = {"tokens_per_s": batch * (tokens - 1) / max(all_s - first_s, 1e-9)}
    return result


@torch.inference_mode()
def continuous_batching(setting: Setting) -> Figures:
    """Output tokens a second of `generate_batch`, prompts included in the time; on CUDA only."""
    if setting.device.type != "cuda":
        return {"tokens_per_s": None}
    model = peer_model(setting)
    prompt, tokens, requests = (16, 4, 4) if setting.is_tiny else (512, 64, 64)
    config = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=1
    )
    inputs = [[2] * prompt for _ in range(requests)]
    model.generate_batch(inputs=inputs[:2], generation_config=config, progress_bar=False)
    took_s = elapsed_s(
        setting,
        lambda: model.generate_batch(inputs=inputs, generation_config=config, progress_bar=False),
    )
    return {"requests": requests, "tokens_per_s": requests * tokens / took_s}


def training(setting: Setting) -> Figures:
    """Tokens a second of forward, backward and AdamW, as fast as peft goes."""
    return peft_training(setting, is_checkpointed=False)


def checkpointed_training(setting: Setting) -> Figures:
    """The same with activations computed again."""
    return peft_training(setting, is_checkpointed=True)


def peft_training(setting: Setting, *, is_checkpointed: bool) -> Figures:
    """Rank 16 on all linears, one row of 4k tokens; peak memory on a card."""
    model = peer_model(setting)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LORA_MODULES)
    adapted = get_peft_model(model, lora)
    adapted.train()
    if is_checkpointed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    tokens = 64 if setting.is_tiny else 4096
    ids = torch.randint(2, 500, (1, tokens), device=setting.device)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        adapted(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    figures: Figures = {"tokens_per_s": tokens / setting.time_s(step, warm=2)}
    if setting.device.type == "cuda":
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def elapsed_s(setting: Setting, run: Callable[[], object]) -> float:
    """Seconds of one call."""
    setting.synchronize()
    began_s = time.perf_counter()
    run()
    setting.synchronize()
    return time.perf_counter() - began_s
