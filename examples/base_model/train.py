"""Trains the base model from scratch on generated data, with a curriculum of lengths."""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
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
    Stage(400, ((24, 128),), Mix(recall=0.4, table=0.1)),
    Stage(300, ((12, 256), (24, 128)), Mix(recall=0.4, table=0.05)),
    Stage(300, ((6, 512), (12, 256), (24, 128)), Mix(recall=0.4, table=0.05)),
    Stage(900, ((2, 2048), (6, 512), (12, 256), (24, 128)), Mix(recall=0.35, table=0.03)),
)
THETA = 500_000.0
WARM_UP = 50
DECAY = 800


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


def plan(stages: tuple[Stage, ...]) -> Iterator[tuple[int, Shape, Mix]]:
    """Yields the number of the stage, the shape and the mix of each step."""
    for number, stage in enumerate(stages):
        for step in range(stage.steps):
            yield number, stage.shapes[step % len(stage.shapes)], stage.mix


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


def train(tokenizer: Tokenizer, out: Path, seed: int, rate: float, limit: int) -> None:
    """Trains a model through the curriculum and writes it after each stage."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = new_model(tokenizer)
    steps = sum(stage.steps for stage in STAGES)
    optimizers = new_optimizers(model, rate)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule(step, steps))
        for optimizer in optimizers
    ]
    began, seen, last = time.monotonic(), 0, 0
    for step, (stage, shape, mix) in enumerate(plan(STAGES)):
        if stage != last:
            save(model, out)
            last = stage
        if step >= limit:
            break
        logits, targets = answer_logits(model, *batch(tokenizer, rng, *shape, mix))
        loss = functional.cross_entropy(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        model.zero_grad()
        seen += shape[0] * shape[1]
        if step % 50 == 0:
            spent = time.monotonic() - began
            results = report(model, tokenizer, shape)
            print(
                f"step {step} stage {stage} loss {loss:.3f} {results} {spent:.0f} s "
                f"{seen / spent:.0f} tokens/s",
                flush=True,
            )
    save(model, out)


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tandem-tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=int, default=1_000_000, help="stop after so many steps")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.out / "tokenizer.json"))
    train(tokenizer, options.out, options.seed, options.rate, options.limit)


if __name__ == "__main__":
    main()
