"""Asks one model about texts, over what each policy keeps of them, in three ways.

agnostic: a text is compressed before any question is known.
aware: it is compressed after the first question, and asked that one. The answer's first token comes
    from the whole cache, as it does in the engine, and is not counted.
second: the other questions are asked on what was compressed for the first, one after the other.

Right answers stand in place of given ones, so a token is right if it is the likeliest after what
should stand before it. An answer is right if all its tokens are: so it is with greedy decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kv_contenders import Contender, tokens_within
from benchmarks.kv_reader import Continued, OpenText, Reader
from benchmarks.recall_task import Papers
from workers.kv_policy import KvPolicy

WHOLE = "whole"
WINDOW = 8
NUM_QUERIES = 64


@dataclass(frozen=True, slots=True)
class Way:
    """A contender with its options."""

    contender: Contender
    options: Mapping[str, Any]

    def policy(self, reader: Reader, num_tokens: int, budget: float) -> KvPolicy:
        """The policy that holds this share of the bytes of `num_tokens`."""
        num_bytes = budget * num_tokens * reader.slot_bytes
        slots = tokens_within(num_bytes, reader.slot_bytes, self.contender)
        return self.contender.policy_with(self.options, slots, WINDOW)


@dataclass(frozen=True, slots=True)
class Ask:
    """One way to ask: tokens before `start` are compressed, and these answers are marked."""

    name: str
    start: int
    answers: tuple[range, ...]


@dataclass(slots=True)
class Marks:
    """What one policy gave at one budget, asked in one way: a figure for each text.

    Attributes:
        held: bytes that stood for the text, of those of the whole cache.
        exact: share of the text's answers that were right.
        divergence: nats by which answers' tokens lie off what the whole cache predicts, on average.
    """

    ask: str
    policy: str
    budget: float
    held: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    divergence: list[float] = field(default_factory=list)


def asks(papers: Papers) -> list[Ask]:
    """The ways in which texts can be asked, by where they are compressed."""
    first, *others = papers.answers
    ways = [Ask("agnostic", papers.context, papers.answers)]
    if len(first) > 1:
        ways.append(Ask("aware", first.start, (first[1:],)))
    if others:
        ways.append(Ask("second", first.start, tuple(others)))
    return ways


class Examiner:
    """One model, and the policies and budgets that it is asked under."""

    def __init__(self, reader: Reader, ways: Mapping[str, Way], budgets: Sequence[float]) -> None:
        self.reader = reader
        self.ways = ways
        self.budgets = budgets

    def examine(self, papers: Papers) -> list[Marks]:
        """Marks of every way to ask, of the whole cache and of every policy at every budget."""
        marks: dict[tuple[str, str, float], Marks] = {}
        for row in torch.from_numpy(papers.tokens_RN):
            text = self.reader.open(row.tolist(), WINDOW, NUM_QUERIES)
            text.read_to(papers.context)
            whole = text.continue_whole().logits_NV
            for start in dict.fromkeys(ask.start for ask in asks(papers)):
                if start > text.num_read:
                    text.read_to(start)
                told = self.continue_all(text)
                for ask in (ask for ask in asks(papers) if ask.start == start):
                    for (policy, budget), continued in told.items():
                        key = (ask.name, policy, budget)
                        sheet = marks.setdefault(key, Marks(*key))
                        mark(sheet, ask, row, continued, whole[start - papers.context :])
                        sheet.held.append(continued.num_bytes / told[WHOLE, 1.0].num_bytes)
            text.close()
        return list(marks.values())

    def continue_all(self, text: OpenText) -> dict[tuple[str, float], Continued]:
        """The text's tail over all and over what each policy keeps at each budget."""
        keys = [(name, budget) for name in self.ways for budget in self.budgets]
        policies = [
            self.ways[name].policy(self.reader, text.num_read, budget) for name, budget in keys
        ]
        told = dict(zip(keys, text.continue_under(policies), strict=True))
        return {(WHOLE, 1.0): text.continue_whole(), **told}


def mark(sheet: Marks, ask: Ask, tokens: Tensor, continued: Continued, whole_NV: Tensor) -> None:
    """Add one text's figures; row j of the logits predicts the token at ask.start + 1 + j."""
    places = torch.tensor([place for answer in ask.answers for place in answer])
    rows = places - ask.start - 1
    right = continued.logits_NV[rows].argmax(-1) == tokens[places]
    lengths = [len(answer) for answer in ask.answers]
    sheet.exact.append(sum(bool(part.all()) for part in right.split(lengths)) / len(lengths))
    expected, told = (logits[rows].log_softmax(-1) for logits in (whole_NV, continued.logits_NV))
    off = F.kl_div(told, expected, log_target=True, reduction="batchmean")
    sheet.divergence.append(float(off))
