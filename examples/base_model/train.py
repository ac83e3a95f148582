"""Trains the base model from scratch on generated data, with a curriculum of lengths."""

import argparse
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from circuit import plant
from data import IGNORED, Mix, batch
from muon import Muon
from skills import BARE
from tokenizer import SPACE
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

Shape = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """A part of the curriculum.

    Attributes:
        until: The share of the whole training at which it ends.
        shapes: Rows and tokens of the batches, one drawn at random for each step.
        mix: The shares of the kinds of rows.
    """

    until: float
    shapes: tuple[Shape, ...]
    mix: Mix


TINY, SHORT, MIDDLE = (32, 64), (16, 128), (8, 256)
LONG, LONGER, LONGEST = (4, 512), (2, 1024), (1, 2048)
STAGES = (
    Stage(0.10, (TINY,), Mix(recall=0.25, table=0.4)),
    Stage(0.22, (TINY, SHORT, MIDDLE), Mix(recall=0.4, table=0.05)),
    Stage(0.40, (TINY, SHORT, MIDDLE, LONG, LONG), Mix(recall=0.45, table=0.02)),
    Stage(1.00, (TINY, TINY, SHORT, MIDDLE, LONG, LONGER, LONGEST), Mix(recall=0.45, table=0.01)),
)
REFINING = (
    Stage(
        1.0,
        (TINY, TINY, TINY, TINY, SHORT, MIDDLE, LONG, LONGER, LONGEST),
        Mix(recall=0.2, table=0.02),
    ),
)
LENGTHENING = (
    Stage(
        1.0,
        (
            *(TINY, TINY, TINY, SHORT, MIDDLE, LONG),
            *(LONGER, LONGER, LONGER, LONGER, LONGER),
            *(LONGEST, LONGEST, LONGEST, LONGEST, LONGEST, LONGEST, LONGEST, LONGEST, LONGEST),
        ),
        Mix(recall=0.2, table=0.02),
    ),
)
# The stages of a training, and the share of it before the rate falls.
PLANS = {"train": (STAGES, 0.35), "refine": (REFINING, 0.0), "lengthen": (LENGTHENING, 0.0)}
THETA = 500_000.0
WARM_UP = 50
FOLDER = Path(__file__).parent / "tandem-tiny"


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
    tie_spellings(model, tokenizer)
    plant(model, THETA)
    return model


def old_model(folder: Path) -> LlamaForCausalLM:
    """Returns the model in a folder, to be trained on."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.train()
    return model


@torch.no_grad()
def tie_spellings(model: LlamaForCausalLM, tokenizer: Tokenizer) -> None:
    """Starts words without a leading space, as JSON has them, near the same words with one."""
    rows = model.model.embed_tokens.weight
    for word in BARE:
        bare, spaced = tokenizer.token_to_id(word), tokenizer.token_to_id(f"{SPACE}{word}")
        if bare is not None and spaced is not None:
            rows[bare] = (rows[bare] + rows[spaced]) / 2**0.5


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


def schedule(step: int, progress: float, steady: float) -> float:
    """Returns the factor of the learning rate: warm-up, constant, cosine decay."""
    into = max(0.0, progress - steady) / (1 - steady)
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.98 * (1 + math.cos(math.pi * into)) / 2)


def draw(rng: random.Random, stages: Sequence[Stage], progress: float) -> tuple[Shape, Mix]:
    """Returns the shape and the mix of a step; batches of long rows have more recall."""
    stage = next(stage for stage in stages if progress <= stage.until)
    shape = rng.choice(stage.shapes)
    if stages is LENGTHENING and shape[1] >= LONGER[1]:
        return shape, Mix(recall=0, dense=1)
    if shape[1] >= LONG[1]:
        return shape, replace(stage.mix, recall=0.85)
    return shape, stage.mix


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


def train(
    tokenizer: Tokenizer,
    start: Path | None,
    out: Path,
    plan: str,
    seed: int,
    rate: float,
    steps: int,
    stop: int,
) -> None:
    """Trains a model for a number of steps and writes it now and then.

    Args:
        tokenizer: The tokenizer.
        start: The folder of the model to go on with, or None to begin a new one.
        out: The folder to write to.
        plan: The name of the plan in `PLANS`.
        seed: The seed of the weights and the data.
        rate: The highest learning rate.
        steps: The steps of the plan; the curriculum and the rate follow the share of them done.
        stop: The number of steps after which to break off, even if the plan has more.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = old_model(start) if start else new_model(tokenizer)
    stages, steady = PLANS[plan]
    optimizers = new_optimizers(model, rate)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    highest = [group["lr"] for group in groups]
    began, seen = time.monotonic(), 0
    for step in range(min(steps, stop)):
        progress = step / steps
        shape, mix = draw(rng, stages, progress)
        for group, peak in zip(groups, highest, strict=True):
            group["lr"] = peak * schedule(step, progress, steady)
        logits, targets = answer_logits(model, *batch(tokenizer, rng, *shape, mix))
        loss = functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad()
        seen += shape[0] * shape[1]
        if (step + 1) % 100 == 0:
            spent = time.monotonic() - began
            speed = f"{spent:.0f} s {seen} tokens {seen / spent:.0f} tokens/s"
            print(step + 1, f"loss {loss:.3f}", report(model, tokenizer, shape), speed, flush=True)
            save(model, out)
    save(model, out)


def main() -> None:
    """Trains from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan", choices=list(PLANS), help="all but train go on with a model")
    parser.add_argument("--start", type=Path, default=FOLDER, help="the model to go on with")
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=2300, help="each of 2,048 tokens")
    parser.add_argument("--stop", type=int, help="break off after this many of the steps")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = Tokenizer.from_file(str(options.start / "tokenizer.json"))
    train(
        tokenizer,
        None if options.plan == "train" else options.start,
        options.out,
        options.plan,
        options.seed,
        options.rate,
        options.steps,
        options.stop or options.steps,
    )


if __name__ == "__main__":
    main()
