"""Which bytes a token stands for.

Two alphabets cover the families we serve: byte-level BPE writes each byte as one printable
character, SentencePiece vocabularies write a space as U+2581 and rare bytes as `<0x0A>`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tokenizers import Tokenizer

_SPACE_MARK = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Spelling:
    """Token id -> bytes, worked out when first asked for."""

    def __init__(self, tokenizer: Tokenizer, decoder: Mapping[str, Any] | None) -> None:
        """Read the alphabet off tokenizer.json's `decoder`.

        Raises:
            ValueError: neither of the two alphabets.
        """
        self._tokenizer = tokenizer
        self._size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._added = {
            token_id: token.content.encode()
            for token_id, token in tokenizer.get_added_tokens_decoder().items()
        }
        self._cache: dict[int, bytes] = {}
        steps = list(_steps(decoder))
        kinds = {step.get("type") for step in steps}
        self.is_byte_level = "ByteLevel" in kinds
        if not self.is_byte_level and not kinds & {"Metaspace", "ByteFallback"}:
            raise ValueError(
                "tokenizer.json must have a byte-level or a SentencePiece-like decoder; "
                f"found {', '.join(sorted(map(str, kinds))) or 'none'}."
            )
        self.strips_leading_space = any(map(_strips_leading_space, steps))

    @property
    def size(self) -> int:
        """One more than the highest token id."""
        return self._size

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token; none for an id beyond the vocabulary, as padded models have."""
        known = self._cache.get(token_id)
        if known is None:
            known = self._cache[token_id] = self._spell(token_id)
        return known

    def letters(self, text: str) -> list[int]:
        """`text` in the smallest tokens there are, for text that must not become one token."""
        alphabet = _BYTE_TO_LETTER
        if self.is_byte_level:
            return self._known([alphabet[byte] for byte in text.encode()])
        pieces: list[str] = []
        for character in text.replace(" ", _SPACE_MARK):
            if self._tokenizer.token_to_id(character) is None:
                pieces += [f"<0x{byte:02X}>" for byte in character.encode()]
            else:
                pieces.append(character)
        return self._known(pieces)

    def _known(self, tokens: list[str]) -> list[int]:
        ids = [self._tokenizer.token_to_id(token) for token in tokens]
        return [token_id for token_id in ids if token_id is not None]

    def _spell(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < self._size else None
        if token is None:
            return b""
        if self.is_byte_level:
            if all(letter in _LETTER_TO_BYTE for letter in token):
                return bytes([_LETTER_TO_BYTE[letter] for letter in token])
            return token.encode()
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace(_SPACE_MARK, " ").encode()


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The decoders of a sequence, flat."""
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for step in decoder["decoders"]:
            yield from _steps(step)
    else:
        yield decoder


def _strips_leading_space(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Strip":
        return bool(step.get("content") == " " and step.get("start", 0) > 0)
    if step.get("type") == "Metaspace":
        old_setting = "always" if step.get("add_prefix_space", True) else "never"
        return bool(step.get("prepend_scheme", old_setting) != "never")
    return False


def _letters_of_bytes() -> dict[int, str]:
    """Byte -> letter of byte-level BPE: printable Latin-1 as itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


_BYTE_TO_LETTER = _letters_of_bytes()
_LETTER_TO_BYTE = {letter: byte for byte, letter in _BYTE_TO_LETTER.items()}
