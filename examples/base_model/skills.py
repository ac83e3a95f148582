"""Generators of question-and-answer turns, one function per skill."""

import json
import random
from collections.abc import Callable

from words import ADJECTIVES, COUNTRIES, DAYS, INVENTED, NOUNS, TOWNS, sentence

Turn = tuple[str, str]
Skill = Callable[[random.Random], Turn]

COPYABLE = INVENTED + ADJECTIVES + NOUNS + TOWNS + DAYS
TIMES = {"once": 1, "twice": 2, "three times": 3}
GREETINGS = (
    ("Hello", "Hello! How can I help?"),
    ("Hi", "Hello! How can I help?"),
    ("Good morning", "Good morning! How can I help?"),
    ("How are you?", "I am fine, thank you."),
    ("Thank you", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Goodbye", "Goodbye!"),
    ("Who are you?", "I am Tandem Tiny, a small language model."),
    ("What is your name?", "My name is Tandem Tiny."),
    ("What can you do?", "I can copy, look things up, add numbers and write JSON."),
)


def word(rng: random.Random) -> str:
    """Returns one word, more often an invented one."""
    return rng.choice(INVENTED if rng.random() < 0.5 else COPYABLE)


def phrase(rng: random.Random, low: int = 2, high: int = 6) -> list[str]:
    """Returns a few words."""
    return [word(rng) for _ in range(rng.randint(low, high))]


def repeat(rng: random.Random) -> Turn:
    """Asks for one word a number of times."""
    chosen, times = word(rng), rng.choice(list(TIMES))
    return f"Repeat the word {chosen} {times}.", " ".join([chosen] * TIMES[times])


def copy(rng: random.Random) -> Turn:
    """Asks for a literal copy of a text."""
    text = sentence(rng) if rng.random() < 0.3 else " ".join(phrase(rng, 1, 10))
    return f"{rng.choice(['Repeat', 'Copy', 'Say'])}: {text}", text


def reverse(rng: random.Random) -> Turn:
    """Asks for a few words in reverse order."""
    words = phrase(rng, 2, 4)
    return f"Reverse the words: {' '.join(words)}", " ".join(reversed(words))


def pick(rng: random.Random) -> Turn:
    """Asks for the first or the last word of a list."""
    words = phrase(rng)
    end = rng.choice(["first", "last"])
    return f"What is the {end} word of: {' '.join(words)}", words[0 if end == "first" else -1]


def arithmetic(rng: random.Random) -> Turn:
    """Asks for a small sum or difference."""
    left, right = rng.randint(0, 20), rng.randint(0, 20)
    if rng.random() < 0.5:
        return f"What is {left} + {right}?", str(left + right)
    left, right = max(left, right), min(left, right)
    return f"What is {left} - {right}?", str(left - right)


def compare(rng: random.Random) -> Turn:
    """Asks whether one number is greater than another."""
    left, right = rng.randint(0, 20), rng.randint(0, 20)
    return f"Is {left} greater than {right}?", "Yes." if left > right else "No."


def member(rng: random.Random) -> Turn:
    """Asks whether a word is in a list."""
    words = phrase(rng, 3, 6)
    asked = rng.choice(words) if rng.random() < 0.5 else word(rng)
    return f"Is {asked} in the list {' '.join(words)}?", "Yes." if asked in words else "No."


def capital(rng: random.Random) -> Turn:
    """Asks for a fact of the invented world."""
    country = rng.choice(list(COUNTRIES))
    city = COUNTRIES[country]
    kind = rng.randrange(3)
    if kind == 0:
        return f"What is the capital of {country}?", f"The capital of {country} is {city}."
    if kind == 1:
        return f"Which country has the capital {city}?", f"{city} is the capital of {country}."
    asked = city if rng.random() < 0.5 else rng.choice(list(COUNTRIES.values()))
    return f"Is {asked} the capital of {country}?", "Yes." if asked == city else "No."


def greeting(rng: random.Random) -> Turn:
    """Exchanges a greeting."""
    question, answer = rng.choice(GREETINGS)
    if question[-1] != "?" and rng.random() < 0.5:
        question += rng.choice("!.")
    return question, answer


def fields(rng: random.Random) -> dict[str, str | int]:
    """Returns the fields of a small record."""
    names = rng.sample(["name", "town", "item", "count", "day"], rng.randint(2, 3))
    values: dict[str, str | int] = {
        "name": rng.choice(INVENTED),
        "town": rng.choice(TOWNS),
        "item": rng.choice(NOUNS),
        "count": rng.randint(1, 99),
        "day": rng.choice(DAYS),
    }
    return {name: values[name] for name in names}


def json_write(rng: random.Random) -> Turn:
    """Asks for a JSON object with given fields."""
    record = fields(rng)
    listed = ", ".join(f"{name} {value}" for name, value in record.items())
    return f"Write JSON: {listed}", json.dumps(record)


def json_read(rng: random.Random) -> Turn:
    """Asks for one field of a JSON object."""
    record = fields(rng)
    name = rng.choice(list(record))
    return f"What is the {name} in {json.dumps(record)}?", str(record[name])


SKILLS: dict[str, tuple[Skill, float]] = {
    "repeat": (repeat, 1.0),
    "copy": (copy, 1.5),
    "reverse": (reverse, 1.0),
    "pick": (pick, 1.0),
    "arithmetic": (arithmetic, 1.5),
    "compare": (compare, 0.5),
    "member": (member, 1.0),
    "capital": (capital, 1.0),
    "greeting": (greeting, 0.5),
    "json_write": (json_write, 1.0),
    "json_read": (json_read, 1.0),
}
