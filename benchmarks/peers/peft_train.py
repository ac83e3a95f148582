"""A tuned transformers + peft training loop; prints one JSON line a round.

Rank 16 on all linears, AdamW, 512-token rows, the same rows per optimizer step as ours.
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def main() -> None:
    """Warm up, measure, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--wait", action="store_true", help="Start each round on a line of input.")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets))
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    batch = torch.randint(2, 8192, (args.rows, args.tokens))

    def step() -> None:
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    print("READY", flush=True)
    for _ in range(args.rounds):
        if args.wait:
            input()
        began_s, steps = time.perf_counter(), 0
        while time.perf_counter() < began_s + args.seconds:
            step()
            steps += 1
        elapsed_s = time.perf_counter() - began_s
        print(json.dumps({"train_tokens_per_s": steps * batch.numel() / elapsed_s}), flush=True)


if __name__ == "__main__":
    main()
