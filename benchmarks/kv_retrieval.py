"""What is still found when a prompt's K/V are compressed: exact answers against budget.

    python -m benchmarks.kv_retrieval --out DIR [--prompts N] [--tokens N]

The shipped model, which was trained to look facts up, is asked for one of eight facts that are
hidden in filler text; the question ends the prompt, inside the window. Every answer is a sentence
whose first token says nothing, so all that counts is read from the kept slots. Budgets include the
window. Controls: no policy, random eviction, `streaming`.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
from recall import NEEDLES, TOKENS_PER_QUESTION, haystack

from benchmarks import EXAMPLES
from benchmarks.codec_tasks import Turn
from benchmarks.kv_contenders import RandomEviction
from benchmarks.result_file import ResultFile
from scheduler.domain.messages import Frames, FromEngine, Generate, ToEngine
from scheduler.domain.request import KvPolicyChoice, RequestBody, SamplingParams
from scheduler.text.tokenizer import load_tokenizer
from workers.engine import EngineLoop
from workers.kv_policies import KV_POLICIES
from workers.settings import EngineSettings

MODEL = EXAMPLES / "base_model" / "tandem-tiny"
BASE = "tandem-tiny"
WINDOW = 16
BUDGETS = (0.5, 0.25, 0.125, 0.0625, 0.03)
SEED = 123


class Answers:
    """The engine's pipe: orders that are due, and the tokens of each answer."""

    def __init__(self) -> None:
        self.orders: list[ToEngine] = []
        self.tokens: dict[str, list[int]] = {}
        self.num_open = 0

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.engine.Connection."""
        del timeout_s
        orders, self.orders = self.orders, []
        return orders

    def send(self, message: FromEngine) -> None:
        """Keep tokens."""
        for frame in message.frames if isinstance(message, Frames) else ():
            assert frame.error is None, frame.error
            self.tokens.setdefault(frame.request_id, []).extend(frame.token_ids)
            self.num_open -= frame.finish_reason is not None


class Examiner:
    """The model in an engine, and the questions that it is asked."""

    def __init__(self, num_prompts: int, num_tokens: int) -> None:
        self.answers = Answers()
        options = {"base_models": [f"{BASE}={MODEL}"], "prefix_caching": False}
        settings = EngineSettings.model_validate(options)
        self.engine = EngineLoop(settings, self.answers)
        self.tokenizer = load_tokenizer(MODEL)
        rng = random.Random(SEED)
        self.turns = [_turn(rng, num_tokens) for _ in range(num_prompts)]

    def accuracy(self, policy: KvPolicyChoice | None) -> float:
        """Share of answers that are right to the last word."""
        self.answers.tokens, self.answers.num_open = {}, len(self.turns)
        self.answers.orders += [
            self._order(number, question, policy) for number, (question, _) in enumerate(self.turns)
        ]
        while self.answers.num_open:
            self.engine.turn()
        told = [self.tokenizer.decode(self.answers.tokens[str(n)]) for n in range(len(self.turns))]
        right = [text.strip() == want for text, (_, want) in zip(told, self.turns, strict=True)]
        return sum(right) / len(right)

    def _order(self, number: int, question: str, policy: KvPolicyChoice | None) -> Generate:
        body = RequestBody(
            request_id=str(number),
            tenant_id="bench",
            base_model=BASE,
            prompt_token_ids=tuple(
                self.tokenizer.encode_chat([{"role": "user", "content": question}])
            ),
            sampling=SamplingParams(max_tokens=TOKENS_PER_QUESTION, temperature=0),
            kv_policy=policy,
        )
        return Generate(request=body, reply_to="bench")


def _turn(rng: random.Random, num_tokens: int) -> Turn:
    """A context, a question about one of its facts, and the answer."""
    hidden = haystack(rng, num_tokens - TOKENS_PER_QUESTION, NEEDLES)
    question, answer = hidden.question(rng.choice(list(hidden.facts)), bare=False)
    return f"{hidden.text} {question}", answer


def examine(num_prompts: int, num_tokens: int) -> dict[str, Any]:
    """Accuracy without a policy, and of each one at each budget."""
    torch.manual_seed(SEED)  # of the random control
    examiner = Examiner(num_prompts, num_tokens)
    whole = examiner.accuracy(None)
    print(f"{'whole':10} {whole:6.2f}", flush=True)
    found: dict[str, list[float]] = {}
    for name in KV_POLICIES.names():
        options = [{"budget": budget, "window": WINDOW} for budget in BUDGETS]
        found[name] = [examiner.accuracy(KvPolicyChoice(type=name, options=o)) for o in options]
        print(f"{name:10} " + " ".join(f"{share:6.2f}" for share in found[name]), flush=True)
    return {"whole": whole, "budgets": BUDGETS, "policies": found}


def main() -> None:
    """Ask and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=1024)
    arguments = parser.parse_args()
    KV_POLICIES.register("random")(RandomEviction)
    results = ResultFile(arguments.out, f"kv-retrieval-{arguments.tokens}")
    asked = {"tokens": arguments.tokens, "prompts": arguments.prompts, "window": WINDOW}
    results.add(asked | examine(arguments.prompts, arguments.tokens))


if __name__ == "__main__":
    main()
