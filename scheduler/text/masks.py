"""Which tokens of a row are learnt: what the assistant says and the token that ends its turn.

Where an answer stands in the rendered conversation follows from rendering the messages before it
as a prompt. The text is tokenised once as a whole, with token borders at the answers' borders, so
that training sees the tokens that serving will see.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from scheduler.text.conversation import Conversation
    from scheduler.text.rows import ChatRow, PairRow
    from scheduler.text.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
class MaskedTokens:
    """One example.

    Attributes:
        token_ids: the tokens, up to the last learnt one.
        weights: of predicting each; 0 for the first, which nothing predicts.
        last_turn_only: earlier answers could not be told apart and are not learnt.
    """

    token_ids: list[int]
    weights: list[float]
    last_turn_only: bool = False

    @property
    def trained(self) -> tuple[int, ...]:
        """Positions of the tokens that are learnt, ascending."""
        return tuple(i for i, weight in enumerate(self.weights) if weight > 0)


def mask_pair(row: PairRow, tokenizer: ChatTokenizer) -> MaskedTokens:
    """Learn the completion and the end of the text."""
    prompt, completion = tokenizer.encode_pair(row.prompt, row.completion)
    if tokenizer.eos_id is not None:
        completion.append(tokenizer.eos_id)
    weights = [0.0] * len(prompt) + [1.0] * len(completion)
    weights[0] = 0.0
    return MaskedTokens(prompt + completion, weights)


def mask_chat(row: ChatRow, tokenizer: ChatTokenizer) -> MaskedTokens:
    """Learn the row's trained answers.

    If the template rewrites earlier turns (some drop an answer's reasoning once another turn
    follows), what it shows of them is not what the model said then; only the last is learnt.

    Raises:
        InvalidInput: malformed messages, or the template does not show where the answer is.
    """
    chat = tokenizer.conversation(row.messages, row.tools)
    last = max(row.trained)
    text = chat.render(last + 1, add_generation_prompt=False)
    spans = [_span(chat, turn, text, last + 1) for turn in sorted(row.trained)]
    found = [span for span in spans if span is not None]
    if spans[-1] is None:
        raise InvalidInput(f"the chat template does not show where answer messages.{last} begins.")
    kept = found if len(found) == len(spans) else [spans[-1]]
    masked = _weigh(chat, text, kept, tokenizer)
    return MaskedTokens(masked.token_ids, masked.weights, last_turn_only=len(found) < len(spans))


def _span(chat: Conversation, turn: int, text: str, end: int) -> tuple[int, int] | None:
    """Where message `turn` stands in `text`, the first `end` messages, without its header.

    None if `text` rewrites it, or does not show where it begins.
    """
    is_last = turn + 1 == end
    until = text if is_last else chat.render(turn + 1, add_generation_prompt=False)
    if not text.startswith(until):
        return None
    try:
        prompt = chat.render(turn, add_generation_prompt=True)
        if until.startswith(prompt):
            return len(prompt), len(until)
        before = chat.render(turn, add_generation_prompt=False)
    except InvalidInput:  # nothing precedes the answer, or only what the template refuses
        return None
    # The prompt opens more than the header, such as a reasoning block that this answer lacks.
    pairs = zip(prompt, until, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = chat.last_border(until[:shared])
    return (start, len(until)) if start > len(before) and until.startswith(before) else None


def _weigh(
    chat: Conversation, text: str, spans: list[tuple[int, int]], tokenizer: ChatTokenizer
) -> MaskedTokens:
    cuts = [edge for span in spans for edge in span]
    encoded = tokenizer.encode_cut(text, chat.marker, cuts)
    borders = [bisect_left(encoded.starts, cut) for cut in encoded.cuts]
    ids = encoded.token_ids
    weights = [0.0] * len(ids)
    end = len(ids)
    ended = False
    for first, limit in zip(borders[::2], borders[1::2], strict=True):
        eos = [i for i in range(first, limit) if ids[i] in tokenizer.eos_ids]
        ended = bool(eos)
        end = eos[-1] + 1 if eos else limit
        weights[first:end] = [1.0] * (end - first)
    ids, weights = ids[:end], weights[:end]
    if not ended and tokenizer.eos_id is not None:  # the template ends its answers with nothing
        ids.append(tokenizer.eos_id)
        weights.append(1.0)
    weights[0] = 0.0
    return MaskedTokens(ids, weights)
