"""What a long answer costs as it grows: time of a step and K/V held, compressed on the way or not.

    python -m benchmarks.kv_generation --out DIR [--quick]

The model and engine of `benchmarks.kv`; short prompts, all answered at once and far longer.
Policies take turns in each round. Steps are looked at in stretches of as many as a decode interval,
up to some lengths: their median is a plain step, their mean pays for a compression too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kv import KvBench, order
from benchmarks.result_file import ResultFile

INTERVAL = 128
SHRUNK = {"budget": 256, "window": 32, "decode_interval": INTERVAL}
POLICIES: dict[str, dict[str, Any] | None] = {"whole": None, "snapkv": SHRUNK, "ems": SHRUNK}
PROMPT = 64
Cells = tuple[tuple[int, tuple[int, ...]], ...]
CELLS: Cells = ((1, (512, 1024, 2048, 4096)), (8, (512, 1024, 2048)))  # batch, lengths
QUICK_CELLS: Cells = ((1, (512, 1024)),)
NUM_ROUNDS = 1


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps before answers reached a length, each one token for every sequence.

    Attributes:
        step_ms, step_cpu_ms: median, by the wall and in processor time of this process.
        mean_cpu_ms: what is done between steps included.
        longest_ms: the longest of them by the wall.
        kv_bytes: most that the sequences held, blocks and what is kept beside them.
    """

    step_ms: float
    step_cpu_ms: float
    mean_cpu_ms: float
    longest_ms: float
    kv_bytes: int


def generate(
    bench: KvBench, policy: str, batch: int, marks: tuple[int, ...], seed: int
) -> list[Stretch]:
    """Answers of the last mark's length; a stretch for each mark."""
    options, num_output = POLICIES[policy], marks[-1] + 1
    bench.callers.num_tokens = {}
    bench.callers.orders += [
        order(policy, options, PROMPT, num_output, seed * 1000 + number) for number in range(batch)
    ]
    steps: list[tuple[float, float]] = []
    held: list[int] = []
    while sum(bench.callers.num_tokens.values()) < batch * num_output:
        steps.append(bench.turn())
        held.append(bench.kv_bytes())
    first = len(steps) - marks[-1]  # steps before the answer's first token are the prompt's
    ends = [first + mark for mark in marks]
    return [_stretch(steps[end - INTERVAL : end], max(held[end - INTERVAL : end])) for end in ends]


def _stretch(steps: list[tuple[float, float]], kv_bytes: int) -> Stretch:
    wall_s, cpu_s = zip(*steps, strict=True)
    return Stretch(
        statistics.median(wall_s) * 1e3,
        statistics.median(cpu_s) * 1e3,
        statistics.fmean(cpu_s) * 1e3,
        max(wall_s) * 1e3,
        kv_bytes,
    )


def measure(bench: KvBench, batch: int, marks: tuple[int, ...]) -> list[dict[str, Any]]:
    """A line for each mark and policy: medians over rounds, and ratios to the whole cache."""
    runs: dict[str, list[list[Stretch]]] = {policy: [] for policy in POLICIES}
    for number in range(NUM_ROUNDS):
        for policy, measured in runs.items():
            measured.append(generate(bench, policy, batch, marks, number))
    return [
        _line(runs, policy, place) | {"batch": batch, "length": mark, "policy": policy}
        for place, mark in enumerate(marks)
        for policy in POLICIES
    ]


def _line(runs: dict[str, list[list[Stretch]]], policy: str, place: int) -> dict[str, Any]:
    whole, own = ([run[place] for run in runs[name]] for name in ("whole", policy))
    pairs = list(zip(whole, own, strict=True))
    return {
        "step_ms": statistics.median(run.step_ms for run in own),
        "longest_ms": statistics.median(run.longest_ms for run in own),
        "kv_mib": statistics.median(run.kv_bytes for run in own) / 2**20,
        "faster": statistics.median(a.step_cpu_ms / b.step_cpu_ms for a, b in pairs),
        "faster_on_average": statistics.median(a.mean_cpu_ms / b.mean_cpu_ms for a, b in pairs),
        "smaller": statistics.median(a.kv_bytes / b.kv_bytes for a, b in pairs),
        "runs": [asdict(run) for run in own],
    }


def render(line: dict[str, Any]) -> str:
    """One line of the table."""
    return (
        f"{line['batch']} x {line['length']:5}  {line['policy']:8} {line['step_ms']:7.1f} ms a step"
        f", longest {line['longest_ms']:7.1f} {line['kv_mib']:7.1f} MiB  {line['faster']:5.2f}x "
        f"faster, {line['faster_on_average']:5.2f}x on average, {line['smaller']:5.2f}x smaller"
    )


def main() -> None:
    """Run all answers and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    results = ResultFile(arguments.out, "kv-generation", "quick" if arguments.quick else "")
    cells = QUICK_CELLS if arguments.quick else CELLS
    most = max(batch * (PROMPT + marks[-1]) for batch, marks in cells)
    with tempfile.TemporaryDirectory() as folder:
        bench = KvBench(Path(folder), most)
        generate(bench, "ems", 1, (INTERVAL, 512), 99)  # kernels are compiled and caches are warm
        lines: list[dict[str, Any]] = []
        for batch, marks in cells:
            measured = measure(bench, batch, marks)
            print("\n".join(map(render, measured)), flush=True)
            lines += measured
    results.add({"policies": POLICIES, "lines": lines})


if __name__ == "__main__":
    main()
