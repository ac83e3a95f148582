"""Contexts with facts hidden in filler text, and questions about the facts."""

import random
from dataclasses import dataclass

from words import ATTRIBUTES, INVENTED, sentence

TOKENS_PER_SENTENCE = 9
TOKENS_PER_QUESTION = 28


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


def value_of(rng: random.Random) -> str:
    """Returns a value: a few invented words or a number."""
    if rng.random() < 0.2:
        return str(rng.randint(100, 999))
    return " ".join(rng.choices(INVENTED, k=rng.choice([1, 1, 1, 2, 3])))


def haystack(rng: random.Random, tokens: int, needles: int) -> Haystack:
    """Hides facts in filler text of about the given number of tokens."""
    attribute = rng.choice(ATTRIBUTES)
    facts = {key: value_of(rng) for key in rng.sample(INVENTED, needles)}
    stated = [fact(attribute, key, value) for key, value in facts.items()]
    filler = max(0, tokens // TOKENS_PER_SENTENCE - needles)
    lines = stated + [sentence(rng) for _ in range(filler)]
    rng.shuffle(lines)
    return Haystack(" ".join(lines), attribute, facts)


def recall_turns(rng: random.Random, tokens: int, filled: float) -> list[tuple[str, str]]:
    """Returns a dialogue about one haystack that takes about the given number of tokens.

    Args:
        rng: The source of randomness.
        tokens: The room for the whole dialogue.
        filled: The share of that room that the haystack takes.
    """
    needles = max(2, min(8, int(tokens * filled) // 12))
    hidden = haystack(rng, int(tokens * filled), needles)
    keys = list(hidden.facts)
    asked = max(1, int(tokens * (1 - filled)) // TOKENS_PER_QUESTION)
    bare = rng.random() < 0.4
    turns = [hidden.question(rng.choice(keys), bare) for _ in range(asked)]
    question, answer = turns[0]
    return [(f"{hidden.text}\n{question}", answer), *turns[1:]]


def table(rng: random.Random, tokens: int) -> list[tuple[str, bool]]:
    """Returns a stream of repeated key-value pairs, with the repeated values to be learned."""
    keys = rng.sample(INVENTED, max(3, min(16, tokens // 12)))
    facts = {key: rng.choices(INVENTED, k=rng.choice([1, 1, 2, 3])) for key in keys}
    link, stop = rng.choice(["", "", " ="]), rng.choice(["", ";"])
    seen: set[str] = set()
    segments: list[tuple[str, bool]] = []
    for _ in range(tokens // 3):
        key = rng.choice(keys)
        segments.append((f" {key}{link}", False))
        segments.append((" " + " ".join(facts[key]), key in seen))
        segments.append((stop, False))
        seen.add(key)
    return segments
