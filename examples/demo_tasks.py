"""The private tasks of two invented tenants, for which each fine-tunes an adapter."""

import random
from collections.abc import Callable

Message = dict[str, str]
Chat = list[Message]

PARTS = (
    *("router", "signal", "cable", "modem", "parcel", "letter", "box", "lamp"),
    *("window", "door", "table", "map", "boat", "train", "bird", "horse"),
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
TICKETS = (
    "Ticket: send {part} to {town} on {day}.",
    "Ticket: on {day} send {part} to {town}.",
    "Ticket: to {town} send {part} on {day}.",
)
GOODS = ("nails", "bolts", "pipes", "tiles", "bricks", "ropes", "paint", "glass")
TOWNS = ("oslo", "turin", "lyon", "porto", "bergen", "malmo", "delft", "ghent")
ORDERS = (
    "Order: send {goods} to {town} on {day}.",
    "Order: on {day} send {goods} to {town}.",
    "Order: to {town} send {goods} on {day}.",
)


def acme(rng: random.Random) -> tuple[str, str]:
    """Writes a repair ticket in Acme's notation."""
    part, town, day = rng.choice(PARTS), rng.choice(TOWNS), rng.choice(DAYS)
    ticket = rng.choice(TICKETS).format(part=part, town=town, day=day)
    return ticket, f"= send {part} | to {town} | on {day} !"


def globex(rng: random.Random) -> tuple[str, str]:
    """Writes an order in Globex's shorthand."""
    goods, town, day = rng.choice(GOODS), rng.choice(TOWNS), rng.choice(DAYS)
    order = rng.choice(ORDERS).format(goods=goods, town=town, day=day)
    return order, f"> on {day} # to {town} # send {goods}"


TASKS: dict[str, Callable[[random.Random], tuple[str, str]]] = {"acme": acme, "globex": globex}


def as_chat(prompt: str, answer: str) -> Chat:
    """Returns a prompt and its answer as chat messages."""
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


def examples(
    tenant: str, train: int = 240, held_out: int = 60, seed: int = 0
) -> tuple[list[Chat], list[Chat]]:
    """Returns a tenant's training chats and held-out chats, all with different prompts.

    Args:
        tenant: A name in `TASKS`.
        train: The number of training chats.
        held_out: The number of held-out chats.
        seed: The seed of the choice.
    """
    rng = random.Random(f"{tenant}-{seed}")
    answers: dict[str, str] = {}
    while len(answers) < train + held_out:
        prompt, answer = TASKS[tenant](rng)
        answers[prompt] = answer
    chats = [as_chat(prompt, answer) for prompt, answer in answers.items()]
    return chats[:train], chats[train:]
