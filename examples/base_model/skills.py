"""Generators of question-and-answer turns, one function per skill."""

import json
import random
from collections.abc import Callable

from words import ADJECTIVES, COUNTRIES, DAYS, GOODS, INVENTED, NOUNS, TOWNS, sentence

Turn = tuple[str, str]
Skill = Callable[[random.Random], Turn]

COPYABLE = INVENTED + ADJECTIVES + NOUNS + TOWNS + DAYS
TIMES = {"once": 1, "twice": 2, "three times": 3}
MARKS = [">", "#", "!", "/", "|", "=", "+", "-", "*", ":", ";", "@", "&", "~", "(", ")"]
BARE = [*TOWNS, *DAYS, *GOODS, "town", "item", "count", "day"]
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
    ("What can you do?", "I can copy, look things up, fill in forms and add small numbers."),
)
EVENTS = (
    ("{count} {item} for {town} on {day}", "count item town day"),
    ("on {day} {town} gets {count} {item}", "count item town day"),
    ("{town} needs {count} {item} on {day}", "count item town day"),
    ("send {count} {item} to {town} on {day}", "count item town day"),
    ("on {day} send {count} {item} to {town}", "count item town day"),
    ("bring {count} {item} from {town}", "count item town"),
    ("the {thing} in {town} is {state} since {day}", "thing town state day"),
    ("the {state} {thing} of {day}", "state thing day"),
    ("on {day} the {thing} was {state}", "day thing state"),
    ("since {day} the {thing} is {state}", "day thing state"),
    ("{thing} {state} at {name} in {town}", "thing state name town"),
    ("tell {name} that the {thing} is {state}", "name thing state"),
)
SLOTS: dict[str, list[str]] = {
    "count": [str(number) for number in range(2, 10)],
    "item": GOODS,
    "town": TOWNS,
    "day": DAYS,
    "thing": NOUNS,
    "state": ADJECTIVES,
    "name": INVENTED,
}


def word(rng: random.Random) -> str:
    """Returns one word, more often an invented one."""
    return rng.choice(INVENTED if rng.random() < 0.5 else COPYABLE)


def phrase(rng: random.Random, low: int = 2, high: int = 6) -> list[str]:
    """Returns a few different words."""
    return rng.sample(INVENTED if rng.random() < 0.5 else COPYABLE, rng.randint(low, high))


def repeat(rng: random.Random) -> Turn:
    """Asks for one word a number of times."""
    chosen, times = word(rng), rng.choice(list(TIMES))
    return f"Repeat the word {chosen} {times}.", " ".join([chosen] * TIMES[times])


def copy(rng: random.Random) -> Turn:
    """Asks for a literal copy of a text."""
    text = sentence(rng) if rng.random() < 0.3 else " ".join(phrase(rng, 1, 8))
    return f"{rng.choice(['Repeat', 'Copy', 'Say'])}: {text}", text


def event(rng: random.Random) -> tuple[str, dict[str, str]]:
    """Returns a short report and the words that fill its slots."""
    template, names = rng.choice(EVENTS)
    chosen = {name: rng.choice(SLOTS[name]) for name in names.split()}
    return template.format(**chosen), chosen


def layout(rng: random.Random, names: list[str]) -> list[str]:
    """Returns slots in a random order with marks between some of them."""
    parts: list[str] = []
    for name in names:
        if rng.random() < 0.6:
            parts.append(rng.choice(MARKS))
        parts.append(name)
    return parts


def form(rng: random.Random) -> Turn:
    """Asks to write some words of a report in a form that is shown."""
    text, chosen = event(rng)
    shown = layout(rng, rng.sample(list(chosen), rng.randint(1, len(chosen))))
    filled = " ".join(chosen.get(part, part) for part in shown)
    return f"Form: {' '.join(shown)} Report: {text}.", filled


def slot(rng: random.Random) -> Turn:
    """Asks for one word of a report by its kind."""
    text, chosen = event(rng)
    name = rng.choice(list(chosen))
    return f"Which {name}? {text}.", chosen[name]


def arithmetic(rng: random.Random) -> Turn:
    """Asks for the sum or difference of two digits."""
    left, right = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.5:
        return f"What is {left} + {right}?", str(left + right)
    left, right = max(left, right), min(left, right)
    return f"What is {left} - {right}?", str(left - right)


def capital(rng: random.Random) -> Turn:
    """Asks for a fact of the invented world."""
    country = rng.choice(list(COUNTRIES))
    city = COUNTRIES[country]
    if rng.random() < 0.5:
        return f"What is the capital of {country}?", f"The capital of {country} is {city}."
    return f"Which country has the capital {city}?", f"{city} is the capital of {country}."


def greeting(rng: random.Random) -> Turn:
    """Exchanges a greeting."""
    question, answer = rng.choice(GREETINGS)
    if question[-1] != "?" and rng.random() < 0.5:
        question += rng.choice("!.")
    return question, answer


def fields(rng: random.Random) -> dict[str, str | int]:
    """Returns the fields of a small record."""
    names = rng.sample(["town", "item", "count", "day"], rng.randint(1, 3))
    values: dict[str, str | int] = {
        "town": rng.choice(TOWNS),
        "item": rng.choice(GOODS),
        "count": rng.randint(2, 9),
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
    "repeat": (repeat, 0.6),
    "copy": (copy, 2.0),
    "slot": (slot, 2.5),
    "form": (form, 2.5),
    "arithmetic": (arithmetic, 0.8),
    "capital": (capital, 0.6),
    "greeting": (greeting, 0.5),
    "json_write": (json_write, 1.0),
    "json_read": (json_read, 0.8),
}
