"""The tokenizer: byte-level BPE that splits digits singly, trained on generated text."""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from data import Mix, row
from skills import COPYABLE
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from words import COUNTRIES

VOCABULARY = 1088
WHOLE = [*COPYABLE, *COUNTRIES, *COUNTRIES.values(), "user", "assistant", "system"]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PIECES = r" ?[A-Za-z]+|[0-9]|\n| ?[^\sA-Za-z0-9]+|\s"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|im_end|>",
    "pad_token": "<|endoftext|>",
    "additional_special_tokens": ["<|im_start|>"],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 4096,
    "chat_template": TEMPLATE,
}


def texts(seed: int, rows: int = 4000) -> Iterator[str]:
    """Yields generated text, and the important words often enough to become one token each."""
    rng = random.Random(seed)
    for _ in range(rows):
        for text, _ in row(rng, 256, Mix()):
            for special in SPECIALS:
                text = text.replace(special, " ")
            yield text
    for word in WHOLE:
        yield from (f"{word} {word}" for _ in range(4000))


def train(seed: int) -> Tokenizer:
    """Trains the tokenizer on generated text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(seed), trainer)
    return tokenizer


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
