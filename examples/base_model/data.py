"""Rows of training tokens, mixed from all skills."""

import random
from dataclasses import dataclass

import torch
from recall import dense_turns, recall_turns, table
from skills import SKILLS, Turn
from tokenizers import Tokenizer
from words import sentence

Segment = tuple[str, bool]
SYSTEMS = ("You are a helpful assistant.", "You are Tandem Tiny.", "Answer briefly.")
START, BREAK, END = "<|im_start|>", "<|im_sep|>", "<|im_end|>"
IGNORED = -100


@dataclass(frozen=True)
class Mix:
    """The shares of the kinds of rows; the rest are rows of short chats.

    Attributes:
        recall: Dialogues about one haystack.
        table: Repeated key-value pairs.
        plain: Plain text.
        dense: Dialogues that ask for each of many facts of one haystack once.
    """

    recall: float = 0.4
    table: float = 0.1
    plain: float = 0.01
    dense: float = 0.0


def chat(turns: list[Turn], system: str | None = None) -> list[Segment]:
    """Returns a dialogue in ChatML, with the assistant's words to be learned."""
    segments: list[Segment] = []
    if system:
        segments.append((f"{START}system{BREAK}{system}{END}", False))
    for question, answer in turns:
        asked = f"{START}user{BREAK}{question}{END}{START}assistant{BREAK}"
        segments += [(asked, False), (f"{answer}{END}", True)]
    return segments


def short_chat(rng: random.Random) -> list[Segment]:
    """Returns a dialogue of one to three turns over the skills."""
    names = list(SKILLS)
    weights = [weight for _, weight in SKILLS.values()]
    chosen = rng.choices(names, weights, k=rng.choice([1, 1, 1, 2, 3]))
    system = rng.choice(SYSTEMS) if rng.random() < 0.25 else None
    return chat([SKILLS[name][0](rng) for name in chosen], system)


def plain(rng: random.Random, tokens: int) -> list[Segment]:
    """Returns filler text, all of it to be learned."""
    return [(" ".join(sentence(rng) for _ in range(tokens // 9)) + "<|endoftext|>", True)]


def row(rng: random.Random, tokens: int, mix: Mix) -> list[Segment]:
    """Returns the segments of one row of about the given number of tokens."""
    kind = rng.random()
    if kind < mix.recall:
        system = rng.choice(SYSTEMS) if rng.random() < 0.25 else None
        return chat(recall_turns(rng, tokens - 12, rng.uniform(0.4, 1.0)), system)
    if kind < mix.recall + mix.table:
        return table(rng, tokens)
    if kind < mix.recall + mix.table + mix.plain:
        return plain(rng, tokens)
    if kind < mix.recall + mix.table + mix.plain + mix.dense:
        return chat(dense_turns(rng, tokens - 12))
    return [segment for _ in range(max(1, tokens // 48)) for segment in short_chat(rng)]


def encode(tokenizer: Tokenizer, segments: list[Segment]) -> tuple[list[int], list[int]]:
    """Returns the token numbers of the segments and the labels to be learned."""
    inputs: list[int] = []
    labels: list[int] = []
    encodings = tokenizer.encode_batch_fast([text for text, _ in segments])
    for encoding, (_, learned) in zip(encodings, segments, strict=True):
        inputs += encoding.ids
        labels += encoding.ids if learned else [IGNORED] * len(encoding.ids)
    return inputs, labels


def batch(
    tokenizer: Tokenizer, rng: random.Random, rows: int, tokens: int, mix: Mix
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns inputs and labels of the given shape, cut or padded on the right."""
    inputs = torch.zeros(rows, tokens, dtype=torch.long)
    labels = torch.full((rows, tokens), IGNORED)
    for index in range(rows):
        numbers, targets = encode(tokenizer, row(rng, tokens, mix))
        length = min(tokens, len(numbers))
        inputs[index, :length] = torch.tensor(numbers[:length])
        labels[index, :length] = torch.tensor(targets[:length])
    return inputs, labels
