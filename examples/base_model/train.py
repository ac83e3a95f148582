"""Trains the base model from scratch on generated data, with a curriculum of lengths."""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from circuit import plant
from data import IGNORED, Mix, batch
from muon import Muon
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

Shape = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        steps: The number of optimizer steps.
        shapes: Rows and tokens of the batches, taken in turn.
        mix: The shares of the kinds of rows.
    """

    steps: int
    shapes: tuple[Shape, ...]
    mix: Mix


STAGES = (
    Stage(300, ((32, 64),), Mix(recall=0.2, table=0.5)),
    Stage(250, ((16, 128), (8, 256)), Mix(recall=0.45, table=0.05)),
    Stage(350, ((1, 2048), (4, 512), (8, 256), (16, 128)), Mix(recall=0.5, table=0.02)),
)
THETA = 500_000.0
WARM_UP = 50
DECAY = 400


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Returns an untrained model for a tokenizer."""
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.08,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|im_start|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        pad_token_id=tokenizer.token_to_id("<|endoftext|>"),
    )
    model = LlamaForCausalLM(config)
    plant(model, THETA)
    return model


def answer_logits(
    model: LlamaForCausalLM, inputs: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the logits at the positions whose next token is to be learned, and these tokens."""
    hidden = model.model(input_ids=inputs[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != IGNORED
    return model.lm_head(hidden[learned]), targets[learned]


def new_optimizers(model: LlamaForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices of the layers and AdamW for everything else."""
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    chosen = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    return [
        Muon(matrices, 4 * rate),
        torch.optim.AdamW(others, rate, (0.9, 0.98), weight_decay=0, fused=True),
    ]


def schedule(step: int, steps: int) -> float:
    """Returns the factor of the learning rate: warm-up, constant, cosine decay."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    into = max(0, step - (steps - DECAY)) / DECAY
    return 0.02 + 0.98 * (1 + math.cos(math.pi * into)) / 2


def plan(stages: list[Stage]) -> Iterator[tuple[Shape, Mix]]:
    """Yields the shape and the mix of each step."""
    for stage in stages:
        for step in range(stage.steps):
            yield stage.shapes[step % len(stage.shapes)], stage.mix


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: Tokenizer, tokens: int, mix: Mix) -> float:
    """Returns the share of answer tokens predicted rightly on a fixed batch."""
    inputs, labels = batch(tokenizer, random.Random(99), max(2, 2048 // tokens), tokens, mix)
    logits, targets = answer_logits(model, inputs, labels)
    return (logits.argmax(-1) == targets).float().mean().item()


def report(model: LlamaForCausalLM, tokenizer: Tokenizer, shape: Shape) -> str:
    """Returns the accuracies on recall and on short chats as text."""
    tokens = shape[1]
    recall = accuracy(model, tokenizer, tokens, Mix(recall=1, table=0, plain=0))
    table = accuracy(model, tokenizer, tokens, Mix(recall=0, table=1, plain=0))
    chats = accuracy(model, tokenizer, tokens, Mix(recall=0, table=0, plain=0))
    return f"recall {recall:.3f} table {table:.3f} chats {chats:.3f}"


def save(model: LlamaForCausalLM, out: Path) -> None:
    """Writes the weights in bfloat16, the configuration and the generation settings."""
    config = model.config
    copied = LlamaForCausalLM(config).bfloat16()
    copied.load_state_dict(model.state_dict())
    copied.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_length=config.max_position_embeddings,
        do_sample=False,
    )
    copied.save_pretrained(out)


def first_model(tokenizer: Tokenizer, out: Path, first: int) -> LlamaForCausalLM:
    """Returns an untrained model for the first stage, else the one that was written before."""
    if first == 0:
        return new_model(tokenizer)
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    model.train()
    return model


def train(tokenizer: Tokenizer, out: Path, seed: int, rate: float, part: range, scale: int) -> None:
    """Trains a model through some stages of the curriculum and writes it at the end.

    Args:
        tokenizer: The tokenizer.
        out: The model's folder.
        seed: The seed of the weights and the data.
        rate: The highest learning rate.
        part: The numbers of the stages.
        scale: The factor by which the stages are lengthened.
    """
    torch.manual_seed(seed + part.start)
    rng = random.Random(seed + part.start)
    model = first_model(tokenizer, out, part.start)
    optimizers = new_optimizers(model, rate)
    stages = [replace(stage, steps=stage.steps * scale) for stage in STAGES[part.start :]]
    steps = sum(stage.steps for stage in stages)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
        for optimizer in optimizers
    ]
    began, seen = time.monotonic(), 0
    for step, (shape, mix) in enumerate(plan(stages[: len(part)])):
        logits, targets = answer_logits(model, *batch(tokenizer, rng, *shape, mix))
        loss = functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        model.zero_grad()
        seen += shape[0] * shape[1]
        if step % 50 == 0:
            spent = time.monotonic() - began
            speed = f"{spent:.0f} s {seen / spent:.0f} tokens/s"
            print(step, f"loss {loss:.3f}", report(model, tokenizer, shape), speed, flush=True)
            save(model, out)
    save(model, out)


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tandem-tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first stage to run")
    parser.add_argument("--stop", type=int, default=len(STAGES), help="the stage to stop before")
    parser.add_argument("--scale", type=int, default=1, help="lengthen the stages by this factor")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    part = range(options.first, options.stop)
    train(tokenizer, options.out, options.seed, options.rate, part, options.scale)


if __name__ == "__main__":
    main()
