"""What a base model's folder says about its text side, gathered from five JSON files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_NO_LENGTH_LIMIT = 10**9  # tokenizers write 1e30 for "none"
MAX_JSON_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """The parsed files of one folder; absent optional ones are empty.

    Attributes:
        tokenizer: tokenizer.json.
        tokenizer_config: tokenizer_config.json, over special_tokens_map.json.
        config: config.json.
        generation_config: generation_config.json.
        chat_template: the default one, or None.
    """

    tokenizer: dict[str, Any]
    tokenizer_config: dict[str, Any]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    chat_template: str | None

    @property
    def named_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token` and so on -> its text."""
        found = {
            name: _token_text(value)
            for name, value in self.tokenizer_config.items()
            if name.endswith("_token") and not isinstance(value, bool)
        }
        return {name: text for name, text in found.items() if text}

    @property
    def special_texts(self) -> list[str]:
        """Every token that some file calls special."""
        texts = [
            token["content"]
            for token in self.tokenizer.get("added_tokens", ())
            if token.get("special")
        ]
        texts += self.named_tokens.values()
        for key in ("additional_special_tokens", "extra_special_tokens"):
            listed = self.tokenizer_config.get(key) or ()
            texts += map(_token_text, listed.values() if isinstance(listed, dict) else listed)
        return [text for text in dict.fromkeys(texts) if text]

    @property
    def eos_ids(self) -> frozenset[int]:
        """Ids that config.json and generation_config.json end an answer with."""
        ids: set[int] = set()
        for config in (self.config, self.generation_config):
            value = config.get("eos_token_id")
            ids.update(value if isinstance(value, list) else [] if value is None else [value])
        return frozenset(ids)

    @property
    def max_model_len(self) -> int:
        """The longest context, in tokens.

        Raises:
            ValueError: no file names it.
        """
        length = _text_config(self.config).get("max_position_embeddings")
        if length is None:
            length = self.tokenizer_config.get("model_max_length")
        if length is None or length > _NO_LENGTH_LIMIT:
            raise ValueError("config.json must give max_position_embeddings.")
        return int(length)

    def adds_bos(self, bos_id: int) -> bool:
        """Whether the model's own tokenizer puts bos before a text."""
        setting = self.tokenizer_config.get("add_bos_token")
        if isinstance(setting, bool):
            return setting
        return _first_id(self.tokenizer.get("post_processor")) == bos_id

    def vocab_size(self, at_least: int) -> int:
        """Rows of the model's embedding; `at_least` where config.json does not say."""
        return max(int(_text_config(self.config).get("vocab_size") or 0), at_least)


def read_model_files(model_dir: Path) -> ModelFiles:
    """Read the folder.

    Raises:
        ValueError: tokenizer.json is missing, or a file is not what it should be.
    """
    if not (model_dir / "tokenizer.json").is_file():
        raise ValueError(f"{model_dir} has no tokenizer.json; give a Hugging Face model folder.")
    settings = {
        **_read_json(model_dir / "special_tokens_map.json"),
        **_read_json(model_dir / "tokenizer_config.json"),
    }
    return ModelFiles(
        tokenizer=_read_json(model_dir / "tokenizer.json"),
        tokenizer_config=settings,
        config=_read_json(model_dir / "config.json"),
        generation_config=_read_json(model_dir / "generation_config.json"),
        chat_template=_chat_template(model_dir, settings),
    )


def _chat_template(model_dir: Path, settings: Mapping[str, Any]) -> str | None:
    """The file of its own wins over the setting; of several named ones, `default`."""
    own_file = model_dir / "chat_template.jinja"
    if own_file.is_file():
        return own_file.read_text(encoding="utf-8")
    setting = settings.get("chat_template")
    if isinstance(setting, list):
        named = {entry.get("name"): entry.get("template") for entry in setting}
        setting = named.get("default")
    if setting is None or isinstance(setting, str):
        return setting
    raise ValueError(f"{model_dir}: chat_template must be a string or a list of named strings.")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return value


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part about text; models that also see nest it."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _first_id(post_processor: Any) -> int | None:
    """The id that a post-processor's template starts a single text with."""
    if not isinstance(post_processor, dict):
        return None
    if post_processor.get("type") == "Sequence":
        found = map(_first_id, post_processor["processors"])
        return next((token_id for token_id in found if token_id is not None), None)
    pieces = post_processor.get("single") or [{}]
    name = pieces[0].get("SpecialToken", {}).get("id")
    ids = post_processor.get("special_tokens", {}).get(name, {}).get("ids") or [None]
    first: int | None = ids[0]
    return first


def _token_text(value: Any) -> str:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
