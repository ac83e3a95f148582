"""A model that answers many prompts at once, greedily."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from data import BREAK, END, START
from skills import Turn
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

BATCH_TOKENS = 8192
BATCH_ROWS = 50
ANSWER_TOKENS = 40


@dataclass
class Answerer:
    """A model with its tokenizer.

    Attributes:
        model: The model, with or without an adapter, in float32.
        tokenizer: Its tokenizer.
    """

    model: torch.nn.Module
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Loads a folder in float32."""
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return cls(model, Tokenizer.from_file(str(folder / "tokenizer.json")))

    @torch.no_grad()
    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Returns the answers to users' messages, each generated up to its end token."""
        texts = [f"{START}user{BREAK}{prompt}{END}{START}assistant{BREAK}" for prompt in prompts]
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        longest = max(map(len, rows))
        inputs = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        generated = self.model.generate(  # type: ignore[operator]
            input_ids=inputs, attention_mask=mask, max_new_tokens=ANSWER_TOKENS, max_length=None
        )
        endings = [row.tolist() for row in generated[:, longest:]]
        decoded = self.tokenizer.decode_batch(endings, skip_special_tokens=False)
        return [text.split(END)[0] for text in decoded]

    def score(self, turns: Sequence[Turn]) -> float:
        """Returns the share of questions answered exactly."""
        longest = max(len(question.split()) for question, _ in turns)
        rows = max(1, min(BATCH_ROWS, BATCH_TOKENS // longest))
        hits = 0
        for start in range(0, len(turns), rows):
            part = turns[start : start + rows]
            answers = self.answers([question for question, _ in part])
            hits += sum(got == right for got, (_, right) in zip(answers, part, strict=True))
        return hits / len(turns)
