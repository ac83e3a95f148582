"""What compressing K/V is worth: decode speed, bytes held, and what the compression itself costs.

    python -m benchmarks.kv --out DIR [--quick]

One generated model, one engine, random prompts; each cell (context, batch) runs without a policy
and with each one in turn, so that ratios compare neighbours in time. They are of processor time,
for others may share the machine; wall times stand beside. The first token is that of the whole
prompt everywhere, and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.bench_model import BASE, bench_config, make_bench_model
from benchmarks.peers.prompts import VOCAB
from benchmarks.result_file import ResultFile
from scheduler.domain.messages import Frames, FromEngine, Generate, ToEngine
from scheduler.domain.request import KvPolicyChoice, RequestBody, SamplingParams
from workers.engine import EngineLoop
from workers.head_pages import HeadPages
from workers.settings import EngineSettings

POLICIES: dict[str, dict[str, Any] | None] = {
    "whole": None,
    "snapkv": {"budget": 1024, "window": 32},
    "ems": {"budget": 1024, "window": 32},
}
CELLS = ((2048, 1), (2048, 8), (8192, 1), (8192, 8), (16_384, 1))
QUICK_CELLS = ((2048, 1), (2048, 4))
DECODE_STEPS = 48
NUM_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of a cell.

    Attributes:
        prefill_s: until all prompts were computed and, with a policy, compressed.
        step_ms: median of the decode steps that followed, each one token for every sequence.
        prefill_cpu_s, step_cpu_ms: the same in processor time of this process.
        kv_bytes: blocks that the sequences hold then, and the log-counts of merged slots.
    """

    prefill_s: float
    prefill_cpu_s: float
    step_ms: float
    step_cpu_ms: float
    kv_bytes: int


class Callers:
    """The engine's pipe: orders that are due, and how many tokens each request has had."""

    def __init__(self) -> None:
        self.orders: list[ToEngine] = []
        self.num_tokens: dict[str, int] = {}

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.engine.Connection."""
        del timeout_s
        orders, self.orders = self.orders, []
        return orders

    def send(self, message: FromEngine) -> None:
        """Count tokens."""
        for frame in message.frames if isinstance(message, Frames) else ():
            assert frame.error is None, frame.error
            count = self.num_tokens.get(frame.request_id, 0)
            self.num_tokens[frame.request_id] = count + len(frame.token_ids)


class KvBench:
    """One engine, and the cells that run in it."""

    def __init__(self, folder: Path, most_tokens: int) -> None:
        config = bench_config()
        config.max_position_embeddings = 32_768
        model = make_bench_model(folder, 0, config=config)
        self.callers = Callers()
        settings = EngineSettings.model_validate(
            {
                "base_models": [f"{BASE}={model.folder}"],
                "kv_cache_tokens": most_tokens + 4096,
                "prefix_caching": False,
                "ttft_ms": 1e6,
                "tpot_ms": 1e6,
            }
        )
        self.engine = EngineLoop(settings, self.callers)
        self.host = self.engine.hosts[BASE]

    def run(self, policy: str, context: int, batch: int, seed: int) -> Measured:
        """Compute and compress `batch` prompts, then decode all of them together."""
        self.callers.num_tokens = {}
        self.callers.orders += [
            order(policy, POLICIES[policy], context, DECODE_STEPS + 8, seed * 1000 + number)
            for number in range(batch)
        ]
        turns = [self.turn()]
        while len(self.callers.num_tokens) < batch:
            turns.append(self.turn())
        prefill_s, prefill_cpu_s = (sum(times) for times in zip(*turns, strict=True))
        kv_bytes = self.kv_bytes()
        steps = []
        while self.host.scheduler.running:
            steps.append(self.turn())
        step_s, step_cpu_s = map(statistics.median, zip(*steps[-DECODE_STEPS:], strict=True))
        return Measured(prefill_s, prefill_cpu_s, step_s * 1e3, step_cpu_s * 1e3, kv_bytes)

    def turn(self) -> tuple[float, float]:
        """One step of the engine: what it took, by the wall and by the processor."""
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        self.engine.turn()
        return time.perf_counter() - wall_s, time.process_time() - cpu_s

    def kv_bytes(self) -> int:
        """Memory of what the running sequences hold."""
        block_bytes = self.host.runner.cache.memory(range(1)).numel()
        total = 0
        for sequence in self.host.scheduler.running:
            total += len(sequence.block_table) * block_bytes
            layout = sequence.layout
            if isinstance(layout, HeadPages):
                total += _beside_pages(layout)
        return total


def order(
    policy: str, options: dict[str, Any] | None, context: int, num_output: int, seed: int
) -> Generate:
    """A random prompt to answer with `num_output` tokens under a policy; None: without one."""
    random = Random(seed)
    body = RequestBody(
        request_id=f"{policy}-{context}-{seed}",
        tenant_id="bench",
        base_model=BASE,
        prompt_token_ids=tuple(random.randrange(2, VOCAB) for _ in range(context)),
        sampling=SamplingParams(max_tokens=num_output, temperature=0, ignore_eos=True),
        kv_policy=options and KvPolicyChoice(type=policy, options=options),
    )
    return Generate(request=body, reply_to="bench")


def _beside_pages(pages: HeadPages) -> int:
    """Bytes of log-counts, and of what the next compression has to know."""
    counts, record = pages.log_counts_LKN, pages.record
    return (0 if counts is None else counts.nbytes) + (0 if record is None else record.num_bytes)


def measure(
    bench: KvBench, cells: tuple[tuple[int, int], ...], rounds: int
) -> list[dict[str, Any]]:
    """Every cell, its policies taking turns; one line for each, with ratios to no policy."""
    lines = []
    for context, batch in cells:
        runs: dict[str, list[Measured]] = {policy: [] for policy in POLICIES}
        for number in range(rounds):
            for policy, measured in runs.items():
                measured.append(bench.run(policy, context, batch, number))
        for policy in POLICIES:
            line = _line(runs, policy) | {"context": context, "batch": batch, "policy": policy}
            lines.append(line)
            print(render(line), flush=True)
    return lines


def _line(runs: dict[str, list[Measured]], policy: str) -> dict[str, Any]:
    """Medians of a policy's runs, and of their ratios to the whole cache in the same round."""
    pairs = list(zip(runs["whole"], runs[policy], strict=True))
    return {
        "step_ms": statistics.median(run.step_ms for run in runs[policy]),
        "kv_mib": statistics.median(run.kv_bytes for run in runs[policy]) / 2**20,
        "step_cpu_ms": statistics.median(run.step_cpu_ms for run in runs[policy]),
        "speedup": statistics.median(whole.step_cpu_ms / run.step_cpu_ms for whole, run in pairs),
        "smaller": statistics.median(whole.kv_bytes / run.kv_bytes for whole, run in pairs),
        "prefill": statistics.median(
            run.prefill_cpu_s / whole.prefill_cpu_s for whole, run in pairs
        ),
        "runs": [asdict(run) for run in runs[policy]],
    }


def render(line: dict[str, Any]) -> str:
    """One line of the table."""
    return (
        f"{line['context']:6} x {line['batch']}  {line['policy']:8} "
        f"{line['step_ms']:8.1f} ms a step {line['kv_mib']:8.1f} MiB  "
        f"{line['speedup']:5.2f}x faster {line['smaller']:5.2f}x smaller "
        f"prefill x {line['prefill']:.3f}"
    )


def main() -> None:
    """Run all cells and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    results = ResultFile(arguments.out, "kv", "quick" if arguments.quick else "")
    cells = QUICK_CELLS if arguments.quick else CELLS
    most = max(context * batch for context, batch in cells)
    with tempfile.TemporaryDirectory() as folder:
        bench = KvBench(Path(folder), most)
        bench.run("ems", 1536, 1, 99)  # kernels are compiled and caches are warm
        lines = measure(bench, cells, 1 if arguments.quick else NUM_ROUNDS)
    results.add({"policies": POLICIES, "cells": lines})


if __name__ == "__main__":
    main()
