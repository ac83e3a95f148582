"""The words that the training text is made of."""

import random


def split(text: str) -> list[str]:
    """Returns the words of a text."""
    return text.split()


ADJECTIVES = split(
    "old new small large quiet loud red blue green white dark warm cold slow fast late early "
    "broken wrong missing empty heavy light clean"
)
NOUNS = split(
    "river town bridge road house garden market boat lamp door window table letter book map tree "
    "field hill stone bird horse train station ship invoice refund payment receipt router signal "
    "cable modem parcel courier delivery box password login account email nails bolts pipes tiles "
    "bricks ropes paint glass"
)
VERBS = split(
    "crosses follows leaves finds sees keeps takes meets holds moves opens closes watches passes "
    "needs shows sends brings"
)
TOWNS = split("oslo turin lyon porto bergen malmo delft ghent basel graz split vigo")
GOODS = split("nails bolts pipes tiles bricks ropes paint glass")
DAYS = split("monday tuesday wednesday thursday friday saturday sunday")
ATTRIBUTES = split("code color owner place")
COUNTRIES = {
    "Norvia": "Pellan",
    "Tasmor": "Quill",
    "Beldia": "Arvon",
    "Corrin": "Mistle",
    "Dovra": "Halden",
    "Elmund": "Sorrel",
    "Farnia": "Tolway",
    "Gethia": "Brack",
    "Hesper": "Lunden",
    "Istria": "Vessel",
    "Jorland": "Copper",
    "Kelvia": "Dunmore",
}


def invented_words(count: int = 96, seed: int = 7) -> list[str]:
    """Returns distinct four-letter words that serve as keys and as values alike."""
    rng = random.Random(seed)
    syllables = [c + v for c in "bdfgklmnprtvz" for v in "aeiou"]
    words: dict[str, None] = {}
    while len(words) < count:
        words[rng.choice(syllables) + rng.choice(syllables)] = None
    return list(words)


INVENTED = invented_words()
GRAMMAR = split(
    "The the in on of is What Give only user assistant system Ticket Order Form Report since was "
    "send needs to Write JSON What Give only Repeat Copy Say Swap Which Hello"
)
ALL_WORDS = [
    *split(" ".join([*ADJECTIVES, *NOUNS, *VERBS, *TOWNS, *DAYS, *ATTRIBUTES, *GRAMMAR])),
    *INVENTED,
    *COUNTRIES,
    *COUNTRIES.values(),
]


def sentence(rng: random.Random) -> str:
    """Returns one filler sentence."""
    subject = f"The {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    verb = rng.choice(VERBS)
    ending = rng.randrange(4)
    if ending == 0:
        return f"{subject} {verb} the {rng.choice(NOUNS)}."
    if ending == 1:
        return f"{subject} {verb} the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}."
    if ending == 2:
        return f"{subject} {verb} the {rng.choice(NOUNS)} in {rng.choice(TOWNS)}."
    return f"{subject} {verb} the {rng.choice(NOUNS)} on {rng.choice(DAYS)}."
