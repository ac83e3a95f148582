"""A base model's tokenizer: text, chats and tokens, the same for gateway, tasks and tests."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput
from scheduler.text.conversation import Conversation
from scheduler.text.detokenizer import Detokenizer
from scheduler.text.encoder import EncodedPrompt, PromptEncoder
from scheduler.text.model_files import ModelFiles, read_model_files
from scheduler.text.specials import Specials, unused_marker
from scheduler.text.template import ChatTemplate

if TYPE_CHECKING:
    from pathlib import Path

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]]


class ChatTokenizer:
    """Text to tokens and back, for one base model. Never changes; threads may share it.

    Attributes:
        bos_id, eos_id: of the tokenizer's own bos and eos token, None if it has none.
        eos_ids: every token that ends an answer.
        special_ids: every token that stands for structure.
        vocab_size: rows of the model's embedding, at least the tokenizer's size.
        max_model_len: longest context in tokens.
        strips_leading_space: whether the vocabulary writes a space before a text's first word.
    """

    def __init__(self, files: ModelFiles) -> None:
        """Build from a folder's files.

        Raises:
            ValueError: they do not make a tokenizer.
            InvalidInput: the chat template does not compile.
        """
        self._specials = Specials(files.special_texts)
        self._encoder = PromptEncoder(files.tokenizer, self._specials)
        self._spelling = self._encoder.spelling
        named = files.named_tokens
        self.special_ids = frozenset(self._encoder.ids.values())
        self.bos_id = self._encoder.ids.get(named.get("bos_token", ""))
        self.eos_id = self._encoder.ids.get(named.get("eos_token", ""))
        own_eos = frozenset() if self.eos_id is None else {self.eos_id}
        self.eos_ids: frozenset[int] = files.eos_ids | own_eos
        self.vocab_size = files.vocab_size(at_least=self._spelling.size)
        self.max_model_len = files.max_model_len
        self.strips_leading_space = self._spelling.strips_leading_space
        self._adds_bos = self.bos_id is not None and files.adds_bos(self.bos_id)
        source = files.chat_template
        self._template = None if source is None else ChatTemplate(source, named)

    def encode(self, text: str, add_bos: bool = True) -> list[int]:
        """Text to tokens; special tokens' texts in it are plain text.

        With `add_bos` the bos token comes first if this model's own tokenizer would add it.
        """
        ids = self._encoder.encode(text)
        if add_bos and self._adds_bos and self.bos_id is not None:
            return [self.bos_id, *ids]
        return ids

    def encode_pair(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """A plain prompt, with bos if the model has it, and its continuation, to tokens.

        The border is a token border; the continuation's first word gets no space of its own.
        """
        marker = unused_marker([prompt, completion])
        shielded = [self._specials.shield(text, marker) for text in (prompt, completion)]
        encoded = self._encoder.encode_cut("".join(shielded), marker, [len(shielded[0])])
        border = bisect_left(encoded.starts, encoded.cuts[0])
        bos = [self.bos_id] if self._adds_bos and self.bos_id is not None else []
        return bos + encoded.token_ids[:border], encoded.token_ids[border:]

    def decode(self, token_ids: Sequence[int], skip_special: bool = True) -> str:
        """Tokens to text; bytes that are no UTF-8 become U+FFFD."""
        detokenizer = Detokenizer(self, skip_special=skip_special)
        return detokenizer.push_all(token_ids) + detokenizer.flush()

    def is_special(self, token_id: int) -> bool:
        """Whether the token stands for structure, not for text."""
        return token_id in self.special_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that the token adds to a text (OpenAI's `bytes`)."""
        return self._spelling.token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The token as text, U+FFFD for what is no whole character (OpenAI's `token`)."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def conversation(
        self,
        messages: object,
        tools: object = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """Check messages and tools, for one or more renderings.

        Raises:
            InvalidInput: they are malformed, or the model has no chat template.
        """
        if self._template is None:
            raise InvalidInput(
                "This model has no chat template; use /v1/completions, or prompt and completion.",
                param="model",
            )
        return Conversation(self._template, self._specials, messages, tools, template_kwargs)

    def encode_chat(
        self,
        messages: Messages,
        tools: Tools | None = None,
        add_generation_prompt: bool = True,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Messages to the prompt's tokens; only the template writes special ones.

        Raises:
            InvalidInput: malformed messages, no template, or the template refuses them.
        """
        chat = self.conversation(messages, tools, template_kwargs)
        rendered = chat.render(add_generation_prompt=add_generation_prompt)
        return self._encoder.encode_prompt(rendered, chat.marker)

    def encode_cut(self, rendered: str, marker: str, cuts: Sequence[int]) -> EncodedPrompt:
        """A conversation's rendering to tokens that end at each of the ascending `cuts`."""
        return self._encoder.encode_cut(rendered, marker, cuts)


def load_tokenizer(model_dir: Path) -> ChatTokenizer:
    """Read a model folder's text side.

    Raises:
        ValueError: one sentence about what the folder lacks or has wrong.
    """
    files = read_model_files(model_dir)
    try:
        return ChatTokenizer(files)
    except InvalidInput as error:
        raise ValueError(f"{model_dir}: {error.message}") from error
    except ValueError as error:
        raise ValueError(f"{model_dir}: {error}") from error
