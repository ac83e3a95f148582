"""How well a model predicts the rest of a text, over what each policy keeps of its beginning."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from benchmarks.grammar import Passages, passages
from benchmarks.kv_examiner import NUM_QUERIES, WHOLE, WINDOW, Examiner
from benchmarks.kv_reader import Continued

FLOOR = "floor"


@dataclass(slots=True)
class Nats:
    """Surprise at a token of the continuation, on average: a figure for each text.

    Attributes:
        held: bytes that stood for the beginning, of those of the whole cache.
        tokens, values, words: of all tokens, of the values of facts, of all others.
    """

    policy: str
    budget: float
    ask: str = "continued"
    held: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    words: list[float] = field(default_factory=list)

    def add(self, nats: Tensor, is_value: Tensor) -> None:
        """Count one text; a continuation that states no fact counts no values."""
        self.tokens.append(float(nats.mean()))
        self.values.append(float(nats[is_value].mean()))
        self.words.append(float(nats[~is_value].mean()))


def examine_passages(
    examiner: Examiner, rng: np.random.Generator, rows: int, context: int
) -> list[Nats]:
    """Surprise of the whole cache and of every policy at every budget, and the grammar's own."""
    texts = stating(passages(rng, 2 * rows, context), rows)
    nats = {(FLOOR, 1.0): Nats(FLOOR, 1.0)}
    for row, floor, is_value in zip(
        *map(torch.from_numpy, (texts.tokens_RN, texts.floor_RN, texts.is_value_RN)), strict=True
    ):
        text = examiner.reader.open(row.tolist(), WINDOW, NUM_QUERIES)
        text.read_to(context)
        told = examiner.continue_all(text)
        text.close()
        rest = slice(context + 1, None)
        nats[FLOOR, 1.0].add(floor[rest], is_value[rest])
        for key, continued in told.items():
            line = nats.setdefault(key, Nats(*key))
            line.add(surprise(continued, row[rest]), is_value[rest])
            line.held.append(continued.num_bytes / told[WHOLE, 1.0].num_bytes)
    return list(nats.values())


def stating(texts: Passages, count: int) -> Passages:
    """The first `count` texts whose continuations state a fact."""
    states = texts.is_value_RN[:, texts.context + 1 :].any(axis=1)
    rows = np.flatnonzero(states)[:count]
    return Passages(
        texts.tokens_RN[rows], texts.context, texts.is_value_RN[rows], texts.floor_RN[rows]
    )


def surprise(continued: Continued, tokens: Tensor) -> Tensor:
    """Nats of each token, given the logits that predict it."""
    told = continued.logits_NV.log_softmax(-1)
    return -told.gather(1, tokens[:, None])[:, 0]
