"""A tuned transformers + peft training loop.

Rank 16 on all linears, AdamW, 512-token rows, the same rows per optimizer step as ours.
"""

from __future__ import annotations

import argparse

import torch
from peft import PeftModel

from benchmarks.peers.peft_model import load_trainable, named_dtype
from benchmarks.peers.prompts import VOCAB
from benchmarks.peers.rounds import serve_rounds


class TrainingLoop:
    """Optimizer steps, one after the other, over the same rows."""

    def __init__(self, model: PeftModel, rows: int, tokens: int) -> None:
        self.model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=2e-4)
        self.batch = torch.randint(2, VOCAB, (rows, tokens))
        self.num_steps = 0

    def step(self) -> None:
        """One optimizer step."""
        self.model(input_ids=self.batch, labels=self.batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1

    def begin(self, pause_s: float) -> None:
        """Start counting."""
        del pause_s
        self.num_steps = 0

    def result(self, elapsed_s: float) -> dict[str, object]:
        """The rate of the round."""
        return {"train_tokens_per_s": self.num_steps * self.batch.numel() / elapsed_s}


def main() -> None:
    """Load, warm up, measure as told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    dtype = named_dtype(args.dtype)
    model = load_trainable(args.model, dtype, is_checkpointed=args.checkpointing)
    loop = TrainingLoop(model, args.rows, args.tokens)
    loop.step()
    serve_rounds(loop.step, loop.begin, loop.result)


if __name__ == "__main__":
    main()
