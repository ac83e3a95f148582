"""What is still found when a prompt's K/V are compressed: accuracy against budget.

    python -m benchmarks.kv_retrieval --out DIR [--seeds N] [--prompts N]

Trains small models on needles (see `benchmarks.needles`), then asks the engine for one needle of
each of many prompts, its key being the prompt's last token. The first value is drawn before
anything is dropped and counts apart; the other two are what the kept slots give. Budgets include
the window.
Controls: no policy, random eviction, `streaming`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import workers.kv_policies  # noqa: F401
from benchmarks.machine import environment
from benchmarks.needles import SEPARATOR, Haystack, haystack, train
from scheduler.domain.messages import Frames, FromEngine, Generate, ToEngine
from scheduler.domain.request import KvPolicyChoice, RequestBody, SamplingParams
from workers.engine import EngineLoop
from workers.kv_observation import LayerObservation
from workers.kv_policy import KV_POLICIES, KvPolicy
from workers.settings import EngineSettings

BASE = "needles"
LENGTH, WINDOW = 256, 8
BUDGETS = (0.5, 0.25, 0.125, 0.0625)
EVALUATION_SEED = 123


@KV_POLICIES.register("random")
class RandomEviction(KvPolicy):
    """The control that knows nothing."""

    def score(self, seen: LayerObservation) -> torch.Tensor:
        """See KvPolicy."""
        return torch.rand(len(seen.keys), seen.num_tokens)


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
    """One trained model in an engine, and the prompts that it is asked."""

    def __init__(self, folder: Path, num_prompts: int) -> None:
        self.answers = Answers()
        settings = EngineSettings.model_validate(
            {"base_models": [f"{BASE}={folder}"], "dtype": "float32", "page_tokens": 8}
        )
        self.engine = EngineLoop(settings, self.answers)
        generator = np.random.default_rng(EVALUATION_SEED)
        self.haystacks = [haystack(generator, LENGTH) for _ in range(num_prompts)]

    def accuracy(self, policy: KvPolicyChoice | None) -> tuple[float, float]:
        """Share of right first values, and of right values after the first."""
        self.answers.tokens = {}
        self.answers.num_open = len(self.haystacks)
        self.answers.orders += [
            _question(number, hay, policy) for number, hay in enumerate(self.haystacks)
        ]
        while self.answers.num_open:
            self.engine.turn()
        told = np.array([self.answers.tokens[str(n)] for n in range(len(self.haystacks))])
        right = told == np.array([hay.needles[0][1:] for hay in self.haystacks])
        return float(right[:, 0].mean()), float(right[:, 1:].mean())


def _question(number: int, hay: Haystack, policy: KvPolicyChoice | None) -> Generate:
    key, *values = hay.needles[0]
    body = RequestBody(
        request_id=str(number),
        tenant_id="bench",
        base_model=BASE,
        prompt_token_ids=(*hay.context, SEPARATOR, key),
        sampling=SamplingParams(max_tokens=len(values), temperature=0, ignore_eos=True),
        kv_policy=policy,
    )
    return Generate(request=body, reply_to="bench")


def examine(seed: int, num_prompts: int) -> list[dict[str, Any]]:
    """Train one model; a line for each policy and budget."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), seed)
        examiner = Examiner(Path(folder), num_prompts)
        first, later = examiner.accuracy(None)
        lines.append({"policy": "whole", "budget": 1.0, "first": first, "later": later})
        for name in KV_POLICIES.names():
            for budget in BUDGETS:
                options = {"budget": budget, "window": WINDOW}
                first, later = examiner.accuracy(KvPolicyChoice(type=name, options=options))
                line = {"policy": name, "budget": budget, "first": first, "later": later}
                lines.append(line)
    return [line | {"seed": seed} for line in lines]


def render(lines: list[dict[str, Any]]) -> str:
    """Accuracy after the first value, mean over seeds: a row for each policy."""

    def cell(policy: str, budget: float) -> str:
        picked = [x["later"] for x in lines if (x["policy"], x["budget"]) == (policy, budget)]
        return f"{statistics.mean(picked):6.3f}"

    rows = ["".join(["budget    ", *(f"{budget:7}" for budget in BUDGETS)])]
    rows += [f"{'whole':10} {cell('whole', 1.0)}"]
    rows += [" ".join([f"{p:10}", *(cell(p, b) for b in BUDGETS)]) for p in KV_POLICIES.names()]
    return "\n".join(rows)


def main() -> None:
    """Train, ask and write down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=256)
    arguments = parser.parse_args()
    machine = environment("")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"kv-retrieval-{machine['date']}-{machine['machine']}.json"
    lines: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        lines += examine(seed, arguments.prompts)
        print(render(lines), flush=True)
        path.write_text(json.dumps({"environment": machine, "lines": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
