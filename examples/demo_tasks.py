"""The private tasks of two invented tenants, for which each fine-tunes an adapter."""

import random
from collections.abc import Callable

Message = dict[str, str]
Chat = list[Message]

ROUTES = {
    "BLX-7": ("invoice", "refund", "payment", "receipt"),
    "NET-2": ("router", "signal", "cable", "modem"),
    "SHP-4": ("parcel", "courier", "delivery", "box"),
    "ACC-9": ("password", "login", "account", "email"),
}
PROBLEMS = ("broken", "wrong", "missing", "slow", "late", "old", "empty", "loud")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
TICKETS = (
    "Ticket: the {subject} is {problem} since {day}.",
    "Ticket: since {day} the {subject} is {problem}.",
    "Ticket: on {day} the {subject} was {problem}.",
)
GOODS = ("nails", "bolts", "pipes", "tiles", "bricks", "ropes", "paint", "glass")
TOWNS = ("oslo", "turin", "lyon", "porto", "bergen", "malmo", "delft", "ghent")
ORDERS = (
    "Order: send {goods} to {town} on {day}.",
    "Order: on {day} send {goods} to {town}.",
    "Order: to {town} send {goods} on {day}.",
)


def acme(rng: random.Random) -> tuple[str, str]:
    """Routes a support ticket to one of Acme's teams."""
    route = rng.choice(list(ROUTES))
    subject, problem = rng.choice(ROUTES[route]), rng.choice(PROBLEMS)
    ticket = rng.choice(TICKETS).format(subject=subject, problem=problem, day=rng.choice(DAYS))
    return ticket, f"[{route}] {subject} / {problem}"


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
