"""Trains the models that the K/V benchmark asks: small Llamas that learn to look things up.

    python -m benchmarks.recall_model --out DIR [--seeds 0 1 2 3] [--courses recall grammar]

Contexts grow from 64 tokens to 8,192, the last ones by a few steps each. Every step's texts follow
from (seed, course, step), so the same command on the same kind of machine, with the same number of
threads and versions, gives the same weights; broken off, it goes on where it last saved.

As in the shipped model, the heads that look things up start as a guess made by hand: see
`examples/base_model/circuit.py`. From random weights 400 steps had not found them, from the guess
30 steps are enough.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from circuit import plant
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.grammar import grammar
from benchmarks.recall_task import TASKS, VOCAB, Papers, Task

ALL_TASKS: dict[str, Task] = {**TASKS, "grammar": grammar}
LAST_SHARE = 0.1
ROPE_THETA = 1e5
SAVED_EVERY = 10
STATE = "state.pt"


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps on texts of one length; each step's texts are of one of the tasks."""

    context: int
    rows: int
    steps: int
    tasks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Course:
    """A model's stages.

    Attributes:
        number: tells its data from those of other courses.
        rate: highest learning rate; it rises for `warm_up` steps and then falls.
        after: the course whose model it goes on with; empty: an untrained one.
        stop: steps after which it is broken off; None: it is not.
    """

    number: int
    stages: tuple[Stage, ...]
    rate: float = 3e-3
    warm_up: int = 30
    after: str = ""
    stop: int | None = None

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_of(self, step: int) -> Stage:
        """The stage that a step belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(step)


MIXED = ("multikey", "needle", "lookup", "majority", "majority")
LONG = ("multikey", "multikey", "needle", "majority")
CROWDED = ("crowded", "crowded", "crowded", "needle")
COURSES = {
    "recall": Course(
        0,
        (
            Stage(64, 48, 60, ("multikey",)),
            Stage(64, 48, 120, MIXED),
            Stage(128, 32, 60, MIXED),
            Stage(256, 20, 60, MIXED),
            Stage(1024, 6, 40, LONG),
            Stage(4096, 2, 16, LONG),
            Stage(8192, 1, 12, LONG),
        ),
        stop=350,
    ),
    "long": Course(
        2,
        (
            Stage(1024, 6, 20, CROWDED),
            Stage(4096, 2, 30, CROWDED),
            Stage(8192, 1, 24, CROWDED),
        ),
        rate=1.5e-3,
        warm_up=10,
        after="recall",
    ),
    "longest": Course(
        3,
        (Stage(4096, 2, 20, CROWDED), Stage(8192, 1, 150, CROWDED)),
        rate=1.5e-3,
        warm_up=10,
        after="long",
    ),
    "grammar": Course(
        1, (Stage(256, 12, 80, ("grammar",)), Stage(1024, 4, 30, ("grammar",))), after="recall"
    ),
}


def model_folder(root: Path, course: str, seed: int) -> Path:
    """Where a trained model lies."""
    return root / f"{course}-{seed}"


def new_model() -> LlamaForCausalLM:
    """A model before its first step, drawn from torch's global generator."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.08,
        max_position_embeddings=16_384,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    plant(model, ROPE_THETA)
    return model


def old_model(folder: Path) -> LlamaForCausalLM:
    """A trained model, to be trained on."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


class Trainee:
    """One model on its way through a course.

    Attributes:
        folder: takes its state now and then, and at last the model.
        step: steps taken.
    """

    def __init__(self, folder: Path, course: Course, seed: int, start: Path | None = None) -> None:
        self.folder, self.course, self.seed, self.step = folder, course, seed, 0
        torch.manual_seed(seed)
        self.model = new_model() if start is None else old_model(start)
        self.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), course.rate, (0.9, 0.98), weight_decay=0, fused=True
        )
        if (self.folder / STATE).exists():
            state = torch.load(self.folder / STATE)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def train(self) -> None:
        """Take the steps that are left, and write the model."""
        while self.step < (self.course.stop or self.course.num_steps):
            task, papers = self.draw()
            loss, right = self.learn(papers)
            if self.step % SAVED_EVERY == 0:
                self.save()
                told = f"{task:9} of {papers.context:5}: loss {loss:.3f}, right {right:.3f}"
                spent = f"{time.process_time():.0f} s of cpu"
                print(f"{self.folder.name} {self.step:4} {told}, {spent}", flush=True)
        self.save()
        self.model.save_pretrained(self.folder)

    def draw(self) -> tuple[str, Papers]:
        """A step's texts, and their task."""
        stage = self.course.stage_of(self.step)
        rng = np.random.default_rng((self.seed, self.course.number, self.step))
        task = str(rng.choice(stage.tasks))
        return task, ALL_TASKS[task](rng, stage.rows, stage.context)

    def learn(self, papers: Papers) -> tuple[float, float]:
        """One step; the loss, and the share of tokens that were the likeliest."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.course.rate * self.rate_share()
        logits, wanted = self.predict(papers)
        loss = F.cross_entropy(logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss.item(), float((logits.argmax(-1) == wanted).float().mean())

    def predict(self, papers: Papers) -> tuple[Tensor, Tensor]:
        """Logits of the tokens that are to be learned, and these."""
        tokens, learned = torch.from_numpy(papers.tokens_RN), torch.tensor(papers.learned)
        hidden = self.model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden[:, learned - 1])
        return logits.flatten(0, 1), tokens[:, learned].flatten()

    def rate_share(self) -> float:
        """Warm-up, then a half cosine down to LAST_SHARE."""
        fall = 0.5 * (1 + math.cos(math.pi * self.step / self.course.num_steps))
        rise = min(1.0, (self.step + 1) / self.course.warm_up)
        return rise * (LAST_SHARE + (1 - LAST_SHARE) * fall)

    def save(self) -> None:
        """Write what going on takes, all at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(state, self.folder / f"{STATE}.new")
        (self.folder / f"{STATE}.new").replace(self.folder / STATE)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--courses", nargs="+", choices=COURSES, default=list(COURSES))
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    for seed in arguments.seeds:
        for name in arguments.courses:
            course = COURSES[name]
            start = model_folder(arguments.out, course.after, seed) if course.after else None
            folder = model_folder(arguments.out, name, seed)
            Trainee(folder, course, seed, start).train()


if __name__ == "__main__":
    main()
