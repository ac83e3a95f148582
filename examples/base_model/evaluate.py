"""Measures the base model: skills, recall from long contexts and, if asked, fine-tuning."""

import argparse
import random
from pathlib import Path

import torch
from answer import Answerer
from recall import NEEDLES, TOKENS_PER_QUESTION, haystack
from skills import SKILLS, Turn
from tuning import RATE, tune_and_score

HERE = Path(__file__).parent
LENGTHS = (128, 256, 512, 1024, 2048)
BARE_LENGTH = 512


def recall_turns(tokens: int, count: int, bare: bool, seed: int = 5) -> list[Turn]:
    """Returns questions about one of eight facts in contexts of about that number of tokens."""
    rng = random.Random(f"held-out-{seed}-{tokens}")
    turns: list[Turn] = []
    for _ in range(count):
        hidden = haystack(rng, tokens - TOKENS_PER_QUESTION, NEEDLES)
        question, answer = hidden.question(rng.choice(list(hidden.facts)), bare)
        turns.append((f"{hidden.text} {question}", answer))
    return turns


def measure_recall(answerer: Answerer, count: int) -> None:
    """Prints the exact-match accuracy of recall for several lengths of context."""
    for tokens in LENGTHS:
        score = answerer.score(recall_turns(tokens, count, bare=False))
        print(f"recall {tokens:5} sentence {score:.3f}", flush=True)
    score = answerer.score(recall_turns(BARE_LENGTH, count, bare=True))
    print(f"recall {BARE_LENGTH:5} bare word {score:.3f}", flush=True)


def measure_skills(answerer: Answerer, count: int) -> None:
    """Prints the exact-match accuracy of each skill on freshly drawn questions."""
    for name, (skill, _) in SKILLS.items():
        rng = random.Random(f"held-out-{name}")
        print(f"{name:12} {answerer.score([skill(rng) for _ in range(count)]):.3f}", flush=True)


def main() -> None:
    """Evaluates from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "tandem-tiny")
    parser.add_argument("--count", type=int, default=100, help="questions for each measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=0, help="adapters to tune for each tenant")
    parser.add_argument("--rate", type=float, default=RATE, help="the adapters' learning rate")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answerer = Answerer.load(options.model)
    if options.count:
        measure_recall(answerer, options.count)
        measure_skills(answerer, options.count)
    for tenant in ("acme", "globex"):
        for seed in range(options.seeds):
            print(tune_and_score(options.model, tenant, seed, options.rate), flush=True)


if __name__ == "__main__":
    main()
