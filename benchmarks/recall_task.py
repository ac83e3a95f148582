"""Generated texts with questions about them: what a small model trained for it can look up.

A text is laid out in slots of four tokens. A fact is a key and three values that fill a slot. Keys
and values are of one alphabet and all differ within a text: with an alphabet for each, models of
this size did not learn to find a key's first value. Every task gives any number of texts at once,
alike in layout.

Shape suffixes: R rows (texts), N tokens of a text, F facts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

SLOT = 4
BOS, SEP, COUNT = range(3)
FIRST_SYMBOL, NUM_SYMBOLS = 3, 64
FIRST_WORD, NUM_WORDS = FIRST_SYMBOL + NUM_SYMBOLS, 64
VOCAB = FIRST_WORD + NUM_WORDS

NUM_NEEDLES, MOST_NEEDLES = 8, NUM_SYMBOLS // SLOT
TABLE_FACTS = 12
NUM_CANDIDATES = 4
WINNER_SHARE = 0.34  # of all marks; the other candidates share the rest equally


@dataclass(frozen=True, slots=True)
class Papers:
    """Texts, each followed by questions and their answers.

    Attributes:
        tokens_RN: contexts, then tails of questions and answers.
        context: tokens before the tail.
        answers: where each answer lies; from the one before it to there runs its question.
    """

    tokens_RN: Tokens
    context: int
    answers: tuple[range, ...]

    @property
    def learned(self) -> list[int]:
        """Places of the tokens that a model is to predict."""
        return [place for answer in self.answers for place in answer]


Task = Callable[[np.random.Generator, int, int], Papers]


def needle(rng: np.random.Generator, rows: int, context: int) -> Papers:
    """One fact in filler."""
    return _facts_in_filler(rng, rows, context, 1)


def multikey(rng: np.random.Generator, rows: int, context: int) -> Papers:
    """Several facts in filler; all are asked for."""
    return _facts_in_filler(rng, rows, context, NUM_NEEDLES)


def crowded(rng: np.random.Generator, rows: int, context: int) -> Papers:
    """As many facts as the alphabet holds: to train with, for it has most answers."""
    return _facts_in_filler(rng, rows, context, MOST_NEEDLES)


def lookup(rng: np.random.Generator, rows: int, context: int) -> Papers:
    """A table stated over and over, each time in another order, without filler."""
    facts = _facts(rng, rows, TABLE_FACTS)
    slots = context // SLOT - 1
    decks = np.tile(np.arange(TABLE_FACTS), (rows, -(-slots // TABLE_FACTS), 1))
    order = rng.permuted(decks, axis=2).reshape(rows, -1)[:, :slots]
    text = _filler(rng, rows, context)
    text[:, SLOT:] = facts[np.arange(rows)[:, None], order].reshape(rows, -1)
    return _ask_for(text, facts[:, :NUM_NEEDLES])


def majority(rng: np.random.Generator, rows: int, context: int) -> Papers:
    """A mark opens every slot; which of a few symbols is it most often?"""
    marks = context // SLOT - 1
    won = math.ceil(WINNER_SHARE * marks)
    places = np.concatenate(
        (np.zeros(won, np.int64), 1 + np.arange(marks - won) % (NUM_CANDIDATES - 1))
    )
    order = rng.permuted(np.tile(places, (rows, 1)), axis=1)
    candidates = _symbols(rng, rows, NUM_CANDIDATES)
    text = _filler(rng, rows, context)
    text[:, SLOT::SLOT] = np.take_along_axis(candidates, order, axis=1)
    tail = np.stack((np.full(rows, COUNT), candidates[:, 0]), axis=1)
    return Papers(np.concatenate((text, tail), axis=1), context, (range(context + 1, context + 2),))


TASKS: dict[str, Task] = {
    "needle": needle,
    "multikey": multikey,
    "crowded": crowded,
    "lookup": lookup,
    "majority": majority,
}


def _facts_in_filler(rng: np.random.Generator, rows: int, context: int, num_facts: int) -> Papers:
    facts = _facts(rng, rows, num_facts)
    slots = np.tile(np.arange(1, context // SLOT), (rows, 1))
    first = SLOT * rng.permuted(slots, axis=1)[:, :num_facts]
    text = _filler(rng, rows, context)
    places = first[..., None] + np.arange(SLOT)
    np.put_along_axis(text, places.reshape(rows, -1), facts.reshape(rows, -1), axis=1)
    return _ask_for(text, facts)


def _ask_for(text: Tokens, facts_RF4: Tokens) -> Papers:
    """The text with all these facts asked for, one after the other."""
    (rows, context), num_facts = text.shape, facts_RF4.shape[1]
    opener = np.full((rows, 1), SEP)
    tokens = np.concatenate((text, opener, facts_RF4.reshape(rows, -1)), axis=1)
    starts = [context + 2 + SLOT * fact for fact in range(num_facts)]
    return Papers(tokens, context, tuple(range(start, start + SLOT - 1) for start in starts))


def _facts(rng: np.random.Generator, rows: int, num_facts: int) -> Tokens:
    return _symbols(rng, rows, num_facts * SLOT).reshape(rows, num_facts, SLOT)


def _symbols(rng: np.random.Generator, rows: int, count: int) -> Tokens:
    """So many of the alphabet for each row, all different."""
    alphabet = np.tile(np.arange(FIRST_SYMBOL, FIRST_WORD), (rows, 1))
    return rng.permuted(alphabet, axis=1)[:, :count]


def _filler(rng: np.random.Generator, rows: int, context: int) -> Tokens:
    text = rng.integers(FIRST_WORD, VOCAB, (rows, context))
    text[:, 0] = BOS
    return text
