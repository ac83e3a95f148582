"""Generated text of known entropy: a Markov chain of words, and facts that come again much later.

A slot of four tokens holds four words, or with FACT_SHARE a fact: a key and its three values. Each
word has four successors of fixed odds, and facts do not disturb the chain. In the continuation
every fact has been stated before, so who remembers all of the text predicts its values for sure.

Shape suffixes: R rows (texts), N tokens of a text, S slots, F facts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.recall_task import (
    BOS,
    FIRST_SYMBOL,
    FIRST_WORD,
    NUM_SYMBOLS,
    NUM_WORDS,
    SLOT,
    Papers,
    Tokens,
)

STEPS = np.array((1, 5, 17, 40))  # from a word to its successors, around the circle of all words
ODDS = np.array((0.4, 0.3, 0.2, 0.1))
NUM_FACTS = NUM_SYMBOLS // SLOT
FACT_SHARE = 1 / 8
CONTINUED = 256


@dataclass(frozen=True, slots=True)
class Passages:
    """Texts and how surprising each of their tokens is.

    Attributes:
        tokens_RN: contexts of `context` tokens, then continuations.
        is_value_RN: which tokens are values of facts.
        floor_RN: nats of each token to a reader who knows grammar and text; of continuations only.
    """

    tokens_RN: Tokens
    context: int
    is_value_RN: NDArray[np.bool_]
    floor_RN: NDArray[np.float64]


def passages(rng: np.random.Generator, rows: int, context: int) -> Passages:
    """Texts of `context` tokens and their continuations; all facts come up in the context."""
    is_fact = _fact_slots(rng, rows, context)
    facts = np.tile(np.arange(FIRST_SYMBOL, FIRST_WORD), (rows, 1))
    facts = rng.permuted(facts, axis=1).reshape(rows, NUM_FACTS, SLOT)
    steps = rng.choice(len(STEPS), (rows, is_fact.shape[1] * SLOT), p=ODDS)
    first = rng.integers(NUM_WORDS, size=(rows, 1))
    words = FIRST_WORD + (first + np.cumsum(STEPS[steps], axis=1)) % NUM_WORDS
    in_fact = np.repeat(is_fact, SLOT, axis=1)
    place = np.maximum(np.cumsum(~in_fact, axis=1) - 1, 0)  # facts do not disturb the chain
    order = np.cumsum(is_fact, axis=1) - 1
    stated = np.take_along_axis(_dealt(rng, is_fact, context), np.maximum(order, 0), axis=1)
    told = facts[np.arange(rows)[:, None], stated].reshape(rows, -1)
    tokens = np.where(in_fact, told, np.take_along_axis(words, place, axis=1))
    tokens[:, 0] = BOS
    is_start = np.arange(tokens.shape[1]) % SLOT == 0
    chained = -np.log(ODDS)[np.take_along_axis(steps, place, axis=1)]
    floor = np.where(in_fact, 0.0, chained)
    floor += is_start * np.where(
        in_fact, math.log(NUM_FACTS / FACT_SHARE), -math.log(1 - FACT_SHARE)
    )
    return Passages(tokens, context, in_fact & ~is_start, floor)


def entropy_rate() -> float:
    """Nats of a token of the continuation, on average."""
    word = -float(ODDS @ np.log(ODDS))
    choice = -FACT_SHARE * math.log(FACT_SHARE / NUM_FACTS)
    choice -= (1 - FACT_SHARE) * math.log(1 - FACT_SHARE)
    return ((1 - FACT_SHARE) * SLOT * word + choice) / SLOT


def grammar(rng: np.random.Generator, rows: int, context: int) -> Papers:
    """The texts as a task: to predict every token."""
    tokens = passages(rng, rows, context).tokens_RN
    return Papers(tokens, context, (range(1, tokens.shape[1]),))


def _fact_slots(rng: np.random.Generator, rows: int, context: int) -> NDArray[np.bool_]:
    """Which slots hold facts (R, S): a fixed number in the context, by chance after it."""
    slots = context // SLOT
    count = max(NUM_FACTS, round(FACT_SHARE * slots))
    early = np.tile(np.arange(1, slots) <= count, (rows, 1))
    late = rng.random((rows, CONTINUED // SLOT)) < FACT_SHARE
    first = np.zeros((rows, 1), dtype=bool)
    return np.concatenate((first, rng.permuted(early, axis=1), late), axis=1)


def _dealt(rng: np.random.Generator, is_fact_RS: NDArray[np.bool_], context: int) -> Tokens:
    """Which fact is stated n-th: shuffled decks of all in the context, any after it."""
    rows, slots = is_fact_RS.shape
    early = int(is_fact_RS[0, : context // SLOT].sum())
    decks = np.tile(np.arange(NUM_FACTS), (rows, -(-early // NUM_FACTS), 1))
    dealt = rng.permuted(decks, axis=2).reshape(rows, -1)[:, :early]
    return np.concatenate((dealt, rng.integers(NUM_FACTS, size=(rows, slots))), axis=1)
