"""A model trained from scratch to look needles up: the task, and its training.

A context of filler words holds needles, a key and three values side by side. Behind a separator
stands a key, and the values that follow it are to be told. Keys and values share one alphabet and
occur once each, so only the context tells which follows which.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

BOS, SEPARATOR, ALPHABET, FILLER = 0, 1, range(2, 66), range(66, 130)
NUM_NEEDLES, NUM_VALUES = 8, 3
NEEDLE = 1 + NUM_VALUES
STAGES = ((64, 64, 500), (128, 64, 200), (256, 32, 300))  # context, batch, steps
MAX_LEARNING_RATE, WARM_UP_STEPS = 3e-3, 100
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Haystack:
    """One context with its needles.

    Attributes:
        context: BOS and the words.
        needles: (NUM_NEEDLES, NEEDLE) tokens, in random order.
    """

    context: list[int]
    needles: list[list[int]]


def haystack(generator: np.random.Generator, length: int) -> Haystack:
    """`length` words with needles at random places, each a multiple of a needle's length."""
    needles = generator.permutation(list(ALPHABET))[: NUM_NEEDLES * NEEDLE]
    needles = needles.reshape(NUM_NEEDLES, NEEDLE)
    words = generator.choice(list(FILLER), length)
    places = generator.choice(length // NEEDLE, NUM_NEEDLES, replace=False)
    for place, needle in zip(places, needles, strict=True):
        words[place * NEEDLE : (place + 1) * NEEDLE] = needle
    order = generator.permutation(NUM_NEEDLES)
    return Haystack([BOS, *words.tolist()], needles[order].tolist())


def train(folder: Path, seed: int, scale: float = 1.0) -> LlamaForCausalLM:
    """Train a model, `scale` of the steps each, and save it as a Hugging Face folder."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(_config())
    optimizer = torch.optim.AdamW(model.parameters(), MAX_LEARNING_RATE, weight_decay=0)
    stages = [(length, batch, int(steps * scale)) for length, batch, steps in STAGES]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        MAX_LEARNING_RATE,
        total_steps=sum(steps for _, _, steps in stages) + 1,
        pct_start=WARM_UP_STEPS * scale / sum(steps for _, _, steps in stages),
        cycle_momentum=False,
    )
    generator = np.random.default_rng(seed + 1)
    for length, batch, steps in stages:
        for _ in range(steps):
            loss = _loss(model, *_batch(generator, length, batch))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"  needles in {length} words: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return model


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=FILLER.stop,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=SEPARATOR,
    )


def _batch(
    generator: np.random.Generator, length: int, batch: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts with all their needles asked for; only values are targets."""
    rows, targets = [], []
    for _ in range(batch):
        hay = haystack(generator, length)
        row, target = [*hay.context], [IGNORED] * len(hay.context)
        for needle in hay.needles:
            row += [SEPARATOR, *needle]
            target += [IGNORED, IGNORED, *needle[1:]]
        rows.append(row)
        targets.append(target)
    return torch.tensor(rows), torch.tensor(targets)


def _loss(model: LlamaForCausalLM, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model(rows).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, targets[:, 1:].flatten(), ignore_index=IGNORED)
