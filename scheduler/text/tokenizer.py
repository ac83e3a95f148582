"""A base model's tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class ChatTokenizer:
    """Text to tokens and back, for one base model.

    Attributes:
        bos_id, eos_id: of the tokenizer's own bos and eos token, None if it has none.
        eos_ids: every token that ends an answer.
        vocab_size: of the model, at least that of the tokenizer.
        max_model_len: longest context in tokens.
    """

    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    vocab_size: int
    max_model_len: int

    @property
    def has_chat_template(self) -> bool:
        """Whether the model can answer chat requests."""
        raise NotImplementedError

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Text to tokens; special tokens inside the text are plain text.

        With `add_bos` the bos token comes first if this model's own tokenizer would add it.
        """
        raise NotImplementedError

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Tokens to text."""
        raise NotImplementedError

    def is_special(self, token_id: int) -> bool:
        """Whether the token stands for structure, not for text."""
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text (OpenAI's `bytes`)."""
        raise NotImplementedError

    def token_text(self, token_id: int) -> str:
        """The token as text, U+FFFD for what is no whole character (OpenAI's `token`)."""
        raise NotImplementedError

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Messages to the prompt's text. Raises InvalidInput."""
        raise NotImplementedError

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages to the prompt's tokens. Raises InvalidInput."""
        raise NotImplementedError


def load_tokenizer(model_dir: Path) -> ChatTokenizer:
    """Read a model folder's tokenizer. Raises ValueError with one sentence if it cannot."""
    raise NotImplementedError
