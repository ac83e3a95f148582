"""The tokenizer: BPE over whole words with their leading space, and bytes for all else.

Every text starts with a space mark, as in Llama's tokenizers, and so does every segment that
follows a special token. A word is therefore the same token at the start of an answer and inside
a sentence, which is what makes copying easy for a small model.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from data import Mix, row
from skills import BARE, MARKS
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from words import ALL_WORDS

VOCABULARY = 1408
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"]
SPACE = "\u2581"
PIECES = rf"{SPACE}?[A-Za-z]+|[0-9]|{SPACE}?[^\sA-Za-z0-9{SPACE}]|{SPACE}|\s"
PRINTABLE = [chr(code) for code in range(0x20, 0x7F) if chr(code) != " "] + ["\n", SPACE]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>", "<|im_sep|>"],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 4096,
    "chat_template": TEMPLATE,
}


def texts(seed: int, rows: int = 2000) -> Iterator[str]:
    """Yields generated text, and the important words often enough to become one token each."""
    rng = random.Random(seed)
    for _ in range(rows):
        for text, _ in row(rng, 256, Mix()):
            for special in SPECIALS:
                text = text.replace(special, " ")
            yield text
    for word in ALL_WORDS:
        yield from (f"{word} {word}" for _ in range(4000))
    for word in BARE:
        yield from (f'"{word}"' for _ in range(4000))
    for mark in MARKS:
        yield from (f"{mark} {mark}" for _ in range(4000))


def shell(model: models.BPE) -> Tokenizer:
    """Returns a tokenizer around a model: the space marks, the pieces and the way back to text."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def train(seed: int) -> Tokenizer:
    """Trains the tokenizer on generated text and adds a token for each byte."""
    learned = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = shell(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS) - len(learned),
        initial_alphabet=PRINTABLE,
        limit_alphabet=len(PRINTABLE),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(seed), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    ordered = [*SPECIALS, *learned, *sorted(model["vocab"], key=model["vocab"].__getitem__)]
    vocabulary = {token: number for number, token in enumerate(ordered)}
    merges = [(left, right) for left, right in model["merges"]]
    whole = shell(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=False))
    whole.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    return whole


def main() -> None:
    """Writes tokenizer.json and tokenizer_config.json into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tandem-tiny")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(options.seed).save(str(options.out / "tokenizer.json"))
    settings = json.dumps(SETTINGS, indent=2)
    (options.out / "tokenizer_config.json").write_text(settings + "\n")


if __name__ == "__main__":
    main()
