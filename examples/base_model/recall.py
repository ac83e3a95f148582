"""Contexts with facts hidden in filler text, and questions about the facts."""

import random
from dataclasses import dataclass

from words import ATTRIBUTES, INVENTED, sentence

TOKENS_PER_QUESTION = 24
NEEDLES = 8


@dataclass(frozen=True)
class Haystack:
    """A text with facts in it.

    Attributes:
        text: The filler sentences and the facts.
        attribute: What the facts tell of each key.
        facts: The value of each key.
    """

    text: str
    attribute: str
    facts: dict[str, str]

    def question(self, key: str, bare: bool) -> tuple[str, str]:
        """Returns a question about a key and its answer, bare or a full sentence."""
        value = self.facts[key]
        if bare:
            return f"Give only the {self.attribute} of {key}.", value
        return f"What is the {self.attribute} of {key}?", fact(self.attribute, key, value)


def fact(attribute: str, key: str, value: str) -> str:
    """Returns the sentence that states a fact."""
    return f"The {attribute} of {key} is {value}."


def tokens_of(text: str) -> int:
    """Returns the number of tokens of sentences: one for each word and full stop."""
    return len(text.split()) + text.count(".")


def haystack(rng: random.Random, tokens: int, needles: int) -> Haystack:
    """Hides facts in filler text of at most the given number of tokens, if the facts fit.

    All words of the facts differ, so that each question has one answer.
    """
    attribute = rng.choice(ATTRIBUTES)
    words = iter(rng.sample(INVENTED, 3 * needles))
    facts = {
        next(words): " ".join(next(words) for _ in range(rng.choice([1, 1, 2])))
        for _ in range(needles)
    }
    lines = [fact(attribute, key, value) for key, value in facts.items()]
    room = tokens - sum(tokens_of(line) for line in lines)
    while room >= 9:
        lines.append(sentence(rng))
        room -= tokens_of(lines[-1])
    rng.shuffle(lines)
    return Haystack(" ".join(lines), attribute, facts)


def recall_turns(rng: random.Random, tokens: int, filled: float) -> list[tuple[str, str]]:
    """Returns a dialogue about one haystack that takes at most the given number of tokens.

    Args:
        rng: The source of randomness.
        tokens: The room for the whole dialogue.
        filled: The share of that room that the haystack takes, if a question still fits.
    """
    room = min(int(tokens * filled), tokens - TOKENS_PER_QUESTION)
    needles = max(2, min(NEEDLES, room // 12))
    hidden = haystack(rng, room, needles)
    asked = max(1, (tokens - room) // TOKENS_PER_QUESTION)
    keys = list(hidden.facts)
    bare = rng.random() < 0.05
    turns = [hidden.question(rng.choice(keys), bare) for _ in range(asked)]
    question, answer = turns[0]
    return [(f"{hidden.text} {question}", answer), *turns[1:]]


def dense_turns(rng: random.Random, tokens: int) -> list[tuple[str, str]]:
    """Returns a dialogue that asks for every fact of a haystack once, in any order.

    No answer can be copied from an earlier one, and all of them look far back. Up to one fact for
    each 64 tokens: the fewer there are, the longer is the haystack.
    """
    needles = rng.randint(NEEDLES, max(NEEDLES, tokens // 64))
    hidden = haystack(rng, tokens - needles * TOKENS_PER_QUESTION, needles)
    keys = rng.sample(list(hidden.facts), needles)
    turns = [hidden.question(key, bare=False) for key in keys]
    question, answer = turns[0]
    return [(f"{hidden.text} {question}", answer), *turns[1:]]


def table(rng: random.Random, tokens: int) -> list[tuple[str, bool]]:
    """Returns a stream of repeated key-value pairs, with the repeated values to be learned."""
    keys = rng.sample(INVENTED, max(3, min(16, tokens // 12)))
    facts = {key: rng.choices(INVENTED, k=rng.choice([1, 1, 2, 3])) for key in keys}
    link, stop = rng.choice(["", "", " is"]), rng.choice(["", "of"])
    seen: set[str] = set()
    segments: list[tuple[str, bool]] = []
    for _ in range(tokens // 3):
        key = rng.choice(keys)
        segments.append((f"{key}{link}", False))
        segments.append((" ".join(facts[key]), key in seen))
        segments.append((stop, False))
        seen.add(key)
    return segments
