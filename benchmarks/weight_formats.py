"""What weight formats cost in time and save in memory, on the 80M model, each against bf16.

One engine per format, taking turns in one process: answers of 1 and of 8 callers, then training
alone (LoRA of rank 16 on all linears, packs of 512 tokens). Rates are divided by those of plain
weights in the same round; a figure is the median of the rounds.

    python -m benchmarks.weight_formats [--rounds N] [--threads N] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.bench_model import make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.load import Load, StopRule
from benchmarks.result_file import RESULTS, ResultFile
from benchmarks.spread import median, spread
from workers.frozen_linear import FrozenLinear
from workers.weight_format import NO_FORMAT, WEIGHT_FORMATS, find_format

CALLERS = (1, 8)
PHASE = StopRule(seconds=4.0)


def main() -> None:
    """Measure, and write a file of results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    results = ResultFile(options.out, "weight-formats")
    find_format("int8")  # registers all
    with tempfile.TemporaryDirectory() as folder:
        model = make_bench_model(Path(folder), num_adapters=0)
        benches = {
            name: Bench(model, weight_format=name, dtype="bfloat16", kv_cache_tokens=16_384)
            for name in (NO_FORMAT, *WEIGHT_FORMATS.names())
        }
        rounds = [
            {name: measure_round(bench) for name, bench in benches.items()}
            for _ in range(options.rounds)
        ]
    results.add({name: _figures(bench, name, rounds) for name, bench in benches.items()})
    print(results.path)


def measure_round(bench: Bench) -> dict[str, float]:
    """Tokens per second of each kind of work."""
    rates = {
        f"answers_of_{count}": bench.run(Load(count, 0), 0, PHASE).output_tokens_per_s
        for count in CALLERS
    }
    return rates | {"training": bench.run(None, 1, PHASE).train_tokens_per_s}


def _figures(
    bench: Bench, name: str, rounds: list[dict[str, dict[str, float]]]
) -> dict[str, object]:
    layers = bench.host.runner.decoder.weights.layers
    linears = [linear for layer in layers for linear in layer.linears]
    works = rounds[0][name]
    return {
        "bytes_per_weight": sum(map(held_bytes, linears))
        / sum(linear.in_features * linear.out_features for linear in linears),
        "tokens_per_s": {work: median(r[name][work] for r in rounds) for work in works},
        "over_plain": {
            work: spread([r[name][work] / r[NO_FORMAT][work] for r in rounds]) for work in works
        },
    }


def held_bytes(linear: FrozenLinear) -> int:
    """Memory of a linear's weight, both ways round where it is kept so."""
    backward = linear.transposed_panels
    return linear.num_bytes + (0 if backward is None else backward.panels.nbytes)


if __name__ == "__main__":
    main()
