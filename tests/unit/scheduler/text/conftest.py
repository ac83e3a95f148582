"""Three small tokenizers, one per alphabet and template style, and transformers as the oracle."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre
from transformers import AutoTokenizer

from scheduler.text.tokenizer import ChatTokenizer, load_tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, twice: 12 times 34 is 408.",
    "system user assistant tool\nYou are a helpful assistant. Hello there, how are you?",
    "Grüße aus München! 你好世界 <tag> [INST] {json: [1, 2]} | im_start end of text",
    "def f(x):\n    return x  # four  spaces    here\n\n\nParis is the capital of France.",
]
CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\nTools:' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' }}
    {%- elif message.tool_calls %}
        {{- '<|im_start|>assistant\\n' + (message.content or '') }}
        {%- for call in message.tool_calls %}
            {{- '<tool_call>' ~ {'name': call.function.name, 'arguments':
                call.function.arguments} | tojson ~ '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA = """\
{{ bos_token }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] | trim + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}\
{% elif message['role'] == 'system' %}{{ '<<SYS>>' + message['content'] + '<</SYS>>\\n' }}\
{% else %}{{ raise_exception('Only user, assistant and system are known.') }}{% endif %}\
{% endfor %}"""


@dataclass(frozen=True)
class Family:
    """A model folder, our reading of it and transformers'."""

    folder: Path
    ours: ChatTokenizer
    oracle: Any

    def oracle_chat(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        options = {"add_generation_prompt": True, **options}
        ids = self.oracle.apply_chat_template(messages, return_dict=False, **options)
        return [int(token_id) for token_id in ids]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    pieces = Regex(r" ?[A-Za-z]+|[0-9]| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre.Sequence(
        [pre.Split(pieces, "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def sentencepiece_like(*, legacy: bool) -> Tokenizer:
    """Spaces as U+2581, put there by a pre-tokenizer or, as in older folders, by a normalizer."""
    specials = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
    else:
        tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        special_tokens=specials + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    words = [word for line in CORPUS for word in line.split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in specials]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    bos = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[bos])
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, settings: dict[str, Any]) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    full = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(full))
    config = {"model_type": "llama", "vocab_size": 640, "max_position_embeddings": 256}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    root = tmp_path_factory.mktemp("models")
    chatml = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    llama = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "chat_template": LLAMA,
    }
    folders = {
        "chatml": write_folder(root / "chatml", byte_level(), chatml),
        "llama": write_folder(root / "llama", sentencepiece_like(legacy=False), llama),
        "legacy": write_folder(root / "legacy", sentencepiece_like(legacy=True), llama),
    }
    return {
        name: Family(folder, load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))
        for name, folder in folders.items()
    }


@pytest.fixture(params=["chatml", "llama", "legacy"])
def family(request: pytest.FixtureRequest, families: dict[str, Family]) -> Family:
    return families[request.param]


@pytest.fixture
def chatml(families: dict[str, Family]) -> Family:
    return families["chatml"]


@pytest.fixture
def llama(families: dict[str, Family]) -> Family:
    return families["llama"]
