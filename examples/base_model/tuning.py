"""A LoRA fine-tune of the base model on a tenant's task, as a check that it can learn.

Rate schedule, clipping and target modules are those of a job in Tandem.
"""

import math
import random
import sys
import time
from pathlib import Path

import torch
from answer import Answerer
from data import IGNORED, chat, encode
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from torch.nn import functional

sys.path.append(str(Path(__file__).parent.parent))
from demo_tasks import Chat, examples

RANK = 16
ALPHA = 32
RATE = 3e-3
EPOCHS = 10
ROWS = 8
WARM_UP_RATIO = 0.05
HIGHEST_NORM = 1.0


def rows_of(tokenizer: Tokenizer, chats: list[Chat]) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns padded inputs and labels of single-turn chats."""
    pairs = [encode(tokenizer, chat([turn])) for turn in turns_of(chats)]
    longest = max(len(inputs) for inputs, _ in pairs)
    padded = [inputs + [0] * (longest - len(inputs)) for inputs, _ in pairs]
    labels = [targets + [IGNORED] * (longest - len(targets)) for _, targets in pairs]
    return torch.tensor(padded), torch.tensor(labels)


def turns_of(chats: list[Chat]) -> list[tuple[str, str]]:
    """Returns the questions and answers of single-turn chats."""
    return [(question["content"], answer["content"]) for question, answer in chats]


def tune(
    model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor, seed: int, rate: float
) -> int:
    """Trains the adapter's weights with a linearly falling rate and returns the steps taken."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=0)
    steps = EPOCHS * (len(inputs) // ROWS)
    warm_up = math.ceil(WARM_UP_RATIO * steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
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
            torch.nn.utils.clip_grad_norm_(weights, HIGHEST_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return steps


def tune_and_score(folder: Path, tenant: str, seed: int, rate: float) -> str:
    """Tunes an adapter and tells the exact match before and after on held-out chats."""
    torch.manual_seed(seed)
    base = Answerer.load(folder)
    train, held_out = examples(tenant)
    before = base.score(turns_of(held_out))
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    tuned = get_peft_model(base.model, config)
    began = time.monotonic()
    steps = tune(tuned, *rows_of(base.tokenizer, train), seed, rate)
    spent = time.monotonic() - began
    after = Answerer(tuned.eval(), base.tokenizer).score(turns_of(held_out))
    return (
        f"{tenant} seed {seed} rate {rate} base {before:.3f} tuned {after:.3f} "
        f"{steps} steps {spent:.0f} s"
    )
