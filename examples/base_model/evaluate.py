"""Measures the base model: skills, recall from long contexts and, if asked, fine-tuning."""

import argparse
import random
from collections.abc import Iterable
from pathlib import Path

import torch
from recall import haystack
from skills import SKILLS, Turn
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM
from tuning import tune_and_score

HERE = Path(__file__).parent
START, END = "<|im_start|>", "<|im_end|>"


class Answerer:
    """A model with its tokenizer, which answers prompts greedily."""

    def __init__(self, folder: Path) -> None:
        """Loads the model in float32."""
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def answer(self, prompt: str, most: int = 48) -> str:
        """Returns the model's answer to a user's message."""
        text = f"{START}user\n{prompt}{END}\n{START}assistant\n"
        inputs = torch.tensor([self.tokenizer.encode(text).ids])
        mask = torch.ones_like(inputs)
        output = self.model.generate(  # type: ignore[misc]
            inputs, attention_mask=mask, max_new_tokens=most, max_length=None
        )
        decoded = self.tokenizer.decode(output[0, inputs.shape[1] :].tolist(), False)
        return decoded.split(END)[0]

    def score(self, turns: Iterable[Turn]) -> float:
        """Returns the share of questions answered exactly."""
        hits = [self.answer(question) == answer for question, answer in turns]
        return sum(hits) / len(hits)

    def length(self, text: str) -> int:
        """Returns the number of tokens of a text."""
        return len(self.tokenizer.encode(text).ids)


def recall_turns(
    answerer: Answerer, tokens: int, count: int, bare: bool, seed: int = 5
) -> list[Turn]:
    """Returns questions about one of eight facts in contexts of the given number of tokens."""
    rng = random.Random(seed)
    turns: list[Turn] = []
    aim = tokens - 24
    while len(turns) < count:
        hidden = haystack(rng, aim, 8)
        question, answer = hidden.question(rng.choice(list(hidden.facts)), bare)
        prompt = f"{hidden.text}\n{question}"
        excess = answerer.length(prompt) - (tokens - 8)
        if -24 <= excess <= 0:
            turns.append((prompt, answer))
        aim -= excess // 4
    return turns


def measure_skills(answerer: Answerer, count: int) -> None:
    """Prints the exact-match accuracy of each skill on unseen questions."""
    for name, (skill, _) in SKILLS.items():
        rng = random.Random(f"held-out-{name}")
        print(f"{name:12} {answerer.score(skill(rng) for _ in range(count)):.3f}", flush=True)


def measure_recall(answerer: Answerer, count: int) -> None:
    """Prints the exact-match accuracy of recall for several lengths of context."""
    for tokens in (128, 256, 512, 1024, 2048):
        for bare in (False, True):
            score = answerer.score(recall_turns(answerer, tokens, count, bare))
            print(f"recall {tokens:5} {'bare' if bare else 'full'} {score:.3f}", flush=True)


def main() -> None:
    """Evaluates from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "tandem-tiny")
    parser.add_argument("--count", type=int, default=100, help="questions for each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--finetune", action="store_true", help="also tune the demo's adapters")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answerer = Answerer(options.model)
    measure_skills(answerer, options.count)
    measure_recall(answerer, options.count)
    if options.finetune:
        for tenant in ("acme", "globex"):
            print(tune_and_score(options.model, tenant), flush=True)


if __name__ == "__main__":
    main()
