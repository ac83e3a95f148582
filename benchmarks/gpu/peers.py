"""What a user would run instead, on the same card: transformers' generation and peft's training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from benchmarks.gpu.peer_model import peer_model
from benchmarks.gpu.setting import Figures, Setting

LORA_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@torch.inference_mode()
def serving(setting: Setting) -> Iterator[Figures]:
    """Decode rate of `generate` by batch, and output rate of continuous batching."""
    model = peer_model(setting, setting.largest)
    rates: Figures = {}
    for batch in (1, 4) if setting.is_tiny else (1, 16, 64):
        rates[str(batch)] = generated_tokens_per_s(setting, model, batch)
        yield {"generate_tokens_per_s": rates}
    if setting.device.type == "cuda":
        yield {"continuous_batching": continuous_batching(setting, model)}


def generated_tokens_per_s(setting: Setting, model: Any, batch: int) -> float:
    """Decode rate of `generate`, with a context of half a thousand tokens."""
    prompt, tokens = (16, 4) if setting.is_tiny else (512, 32)
    ids = torch.full((batch, prompt), 2, device=setting.device)

    def run(count: int) -> None:
        mask = torch.ones_like(ids)
        limits = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        model.generate(ids, attention_mask=mask, pad_token_id=1, **limits)

    run(2)
    first_s, all_s = elapsed_s(setting, lambda: run(1)), elapsed_s(setting, lambda: run(tokens))
    return batch * (tokens - 1) / max(all_s - first_s, 1e-9)


def continuous_batching(setting: Setting, model: Any) -> Figures:
    """Output tokens a second of `generate_batch`, prompts included in the time; on CUDA only."""
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


class PeftTraining:
    """LoRA of rank 16 on all linears as peft trains it: rows of one length, forward, back, AdamW.

    Args:
        setting: whose largest shape it is.
        is_checkpointed: activations are computed again in backward.
    """

    def __init__(self, setting: Setting, *, is_checkpointed: bool) -> None:
        self.device = setting.device
        model = peer_model(setting, setting.largest)
        lora = LoraConfig(r=16, lora_alpha=32, target_modules=LORA_MODULES)
        self.model = get_peft_model(model, lora).train()
        if is_checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step(self, tokens: int) -> None:
        """One row of so many tokens."""
        ids = torch.randint(2, 500, (1, tokens), device=self.device)
        self.model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def training(setting: Setting) -> Iterator[Figures]:
    """Tokens a second of rows of 4k tokens, with and without checkpointing."""
    tokens = 64 if setting.is_tiny else 4096
    for name, is_checkpointed in {"plain": False, "checkpointed": True}.items():
        peft = PeftTraining(setting, is_checkpointed=is_checkpointed)
        step_s = setting.time_s(lambda peft=peft: peft.step(tokens), warm=1)  # type: ignore[misc]
        yield {name: {"tokens_per_s": tokens / step_s}}
        del peft


def elapsed_s(setting: Setting, run: Callable[[], object]) -> float:
    """Seconds of one call."""
    setting.synchronize()
    began_s = time.perf_counter()
    run()
    setting.synchronize()
    return time.perf_counter() - began_s
