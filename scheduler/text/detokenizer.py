"""Tokens to text while they arrive: whole characters only, one step per token.

A token is a run of bytes, so the text of a sequence is the bytes of its tokens, decoded as UTF-8.
An incremental decoder keeps what does not make a character yet. Decoding everything at once is
the same walk, hence the pieces always add up to it.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable


class TokenSpelling(Protocol):
    """What the detokeniser needs to know about a vocabulary."""

    @property
    def strips_leading_space(self) -> bool:
        """Whether the vocabulary writes a space before the first word of a text."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether the token stands for structure, not for text."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text."""
        ...


class Detokenizer:
    """The text of one sequence, piece by piece."""

    def __init__(
        self, spelling: TokenSpelling, *, skip_special: bool = True, continues_text: bool = False
    ) -> None:
        """Start a sequence.

        Args:
            spelling: usually a ChatTokenizer.
            skip_special: leave special tokens out of the text.
            continues_text: the sequence goes on from a prompt's text, so a leading space is its
                own and stays.
        """
        self._spelling = spelling
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = spelling.strips_leading_space and not continues_text

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        special = self._spelling.is_special(token_id)
        if special and self._skip_special:
            return ""
        spelled = self._spelling.token_bytes(token_id)
        if self._at_start and spelled:
            self._at_start = False
            if not special:
                spelled = spelled.removeprefix(b" ")
        return self._decoder.decode(spelled)

    def push_all(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        return "".join([self.push(token_id) for token_id in token_ids])

    def flush(self) -> str:
        """The sequence is over: an incomplete character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
