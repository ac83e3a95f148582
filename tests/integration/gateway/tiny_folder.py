"""A base model's folder without weights: all that a gateway reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

BASE = "org/tiny"  # what the folder is registered as
MAX_MODEL_LEN = 512
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tiny_folder(folder: Path) -> Path:
    """Byte-level vocabulary (one token per byte), ChatML, a context of 512 tokens."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: token_id for token_id, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"eos_token": "<|im_end|>", "chat_template": CHATML})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 258,
        "max_position_embeddings": MAX_MODEL_LEN,
        "eos_token_id": 257,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    _write(folder / "config.json", config)
    return folder


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value))
