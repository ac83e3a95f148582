"""What the prefix cache saves: questions about one document, and many callers with one prompt.

Two engines, with and without it, take the same requests in turn, each round a new document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.bench_model import BASE, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.load import RequestTimes
from benchmarks.machine import environment
from benchmarks.peers.prompts import prompt
from benchmarks.spread import median, rounded
from scheduler.domain.messages import Generate
from scheduler.domain.request import RequestBody, SamplingParams

DOCUMENT_TOKENS = 2048
QUESTION_TOKENS = 32
NUM_QUESTIONS = 4
SHORT_TOKENS = 250
NUM_CALLERS = 8
OUTPUT_TOKENS = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="After one that warms up.")
    rounds = parser.parse_args().rounds
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        model = make_bench_model(Path(folder), num_adapters=0)
        benches = {name: Bench(model, prefix_caching=name == "on") for name in ("off", "on")}
        times = [
            {name: measure_round(bench, number) for name, bench in benches.items()}
            for number in range(rounds + 1)
        ]
    medians = {name: _medians([both[name] for both in times[1:]]) for name in benches}
    print(json.dumps(rounded({"environment": environment(""), **medians}), indent=1))


def _medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(times[name] for times in rounds) for name in rounds[0]}


def measure_round(bench: Bench, number: int) -> dict[str, float]:
    """Times to first tokens of questions about a new document, and of callers with one prompt."""
    seed = 100 * number
    document = prompt(seed, DOCUMENT_TOKENS)
    questions = [prompt(seed + i + 1, QUESTION_TOKENS) for i in range(NUM_QUESTIONS)]
    first, *later = [_ttft_ms(bench, [document + question]) for question in questions]
    return {
        "first_question_ttft_ms": first,
        "later_question_ttft_ms": median(later),
        "callers_last_ttft_ms": _ttft_ms(bench, [prompt(seed + 50, SHORT_TOKENS)] * NUM_CALLERS),
    }


def _ttft_ms(bench: Bench, prompts: list[tuple[int, ...]]) -> float:
    """Time until each of some requests that come at once has its first token; run to their end."""
    connection = bench.connection
    connection.done.clear()
    for place, token_ids in enumerate(prompts):
        body = RequestBody(
            request_id=f"caller{place}",
            tenant_id="tenant",
            base_model=BASE,
            prompt_token_ids=token_ids,
            sampling=SamplingParams(max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True),
        )
        connection.requests[body.request_id] = RequestTimes(time.perf_counter())
        connection.orders.append(Generate(request=body, reply_to="bench"))
    bench.drive(lambda: len(connection.done) == len(prompts))
    return max(times.ttft_ms for times in connection.done)


if __name__ == "__main__":
    main()
