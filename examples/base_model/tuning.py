"""A LoRA fine-tune of the base model on a tenant's task, as a check that it can learn."""

import random
import sys
import time
from pathlib import Path

import torch
from data import IGNORED, chat, encode
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

sys.path.append(str(Path(__file__).parent.parent))
from demo_tasks import Chat, examples

RANK = 16
ALPHA = 32
RATE = 3e-3
EPOCHS = 10
ROWS = 8
WARM_UP = 10


def rows_of(tokenizer: Tokenizer, chats: list[Chat]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns padded inputs and labels of single-turn chats."""
    pairs = [
        encode(tokenizer, chat([(question["content"], answer["content"])]))
        for question, answer in chats
    ]
    longest = max(len(inputs) for inputs, _ in pairs)
    padded = [inputs + [0] * (longest - len(inputs)) for inputs, _ in pairs]
    labels = [targets + [IGNORED] * (longest - len(targets)) for _, targets in pairs]
    return torch.tensor(padded), torch.tensor(labels)


@torch.no_grad()
def exact_match(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Returns the share of rows whose answers greedy decoding would give exactly.

    A greedy answer is exact just if each of its tokens is the likeliest after the true prefix.
    """
    guesses = model(input_ids=inputs).logits[:, :-1].argmax(-1)
    targets = labels[:, 1:]
    right = (guesses == targets) | (targets == IGNORED)
    return float(right.all(-1).float().mean())


def tune(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, seed: int) -> int:
    """Trains the adapter's weights with a linearly falling rate and returns the steps taken."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=0)
    steps = EPOCHS * (len(inputs) // ROWS)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP, 1 - step / steps)
    )
    rng = random.Random(seed)
    for _ in range(EPOCHS):
        order = rng.sample(range(len(inputs)), len(inputs))
        for start in range(0, len(order) - ROWS + 1, ROWS):
            chosen = order[start : start + ROWS]
            logits = model(input_ids=inputs[chosen]).logits[:, :-1]
            loss = functional.cross_entropy(
                logits.flatten(0, 1), labels[chosen, 1:].flatten(), ignore_index=IGNORED
            )
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return steps


def tune_and_score(folder: Path, tenant: str, seed: int = 0) -> str:
    """Tunes an adapter and tells the exact match before and after on held-out chats."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    train, held_out = (rows_of(tokenizer, chats) for chats in examples(tenant))
    before = exact_match(model, *held_out)
    tuned = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear"))
    began = time.monotonic()
    steps = tune(tuned, *train, seed)
    spent = time.monotonic() - began
    after = exact_match(tuned, *held_out)
    return f"{tenant} base {before:.3f} tuned {after:.3f} {steps} steps {spent:.0f} s"
