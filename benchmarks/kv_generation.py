"""What a long answer costs as it grows: time of a step and K/V held, compressed on the way or not.

    python -m benchmarks.kv_generation --out DIR [--quick]

The model and engine of `benchmarks.kv`; one short prompt at a time, whose answer is far longer.
Policies take turns in each round. Steps are looked at in stretches of as many as a decode interval,
up to the lengths in MARKS: their median is a plain step, their mean pays for a compression too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.kv import KvBench, order
from benchmarks.machine import environment

INTERVAL = 128
SHRUNK = {"budget": 256, "window": 32, "decode_interval": INTERVAL}
POLICIES: dict[str, dict[str, Any] | None] = {"whole": None, "snapkv": SHRUNK, "ems": SHRUNK}
PROMPT = 64
MARKS = (512, 1024, 2048, 4096)
QUICK_MARKS = (512, 1024)
NUM_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Stretch:
    """The steps before an answer reached a length, each one token.

    Attributes:
        step_ms, step_cpu_ms: median, by the wall and in processor time of this process.
        mean_cpu_ms: what is done between steps included.
        longest_ms: the longest of them by the wall.
        kv_bytes: most that the sequence held, blocks and what is kept beside them.
    """

    step_ms: float
    step_cpu_ms: float
    mean_cpu_ms: float
    longest_ms: float
    kv_bytes: int


def generate(bench: KvBench, policy: str, marks: tuple[int, ...], seed: int) -> list[Stretch]:
    """One answer of the last mark's length; a stretch for each mark."""
    wanted = order(policy, POLICIES[policy], PROMPT, marks[-1] + 1, seed)
    name = wanted.request.request_id
    bench.callers.num_tokens = {}
    bench.callers.orders.append(wanted)
    steps: list[tuple[float, float]] = []
    held: list[int] = []
    while bench.callers.num_tokens.get(name, 0) <= marks[-1]:
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


def measure(bench: KvBench, marks: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A line for each mark and policy: medians over rounds, and ratios to the whole cache."""
    runs: dict[str, list[list[Stretch]]] = {policy: [] for policy in POLICIES}
    for number in range(rounds):
        for policy, measured in runs.items():
            measured.append(generate(bench, policy, marks, number))
    return [
        _line(runs, policy, place) | {"length": mark, "policy": policy}
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
        f"{line['length']:6}  {line['policy']:8} {line['step_ms']:7.1f} ms a step, longest "
        f"{line['longest_ms']:7.1f} {line['kv_mib']:7.1f} MiB  {line['faster']:5.2f}x faster, "
        f"{line['faster_on_average']:5.2f}x on average, {line['smaller']:5.2f}x smaller"
    )


def main() -> None:
    """Run all answers and write them down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    marks = QUICK_MARKS if arguments.quick else MARKS
    with tempfile.TemporaryDirectory() as folder:
        bench = KvBench(Path(folder), marks[-1])
        generate(bench, "ems", (INTERVAL, 512), 99)  # kernels are compiled and caches are warm
        lines = measure(bench, marks, 1 if arguments.quick else NUM_ROUNDS)
    print("\n".join(map(render, lines)))
    machine = environment("") | {"load_after": os.getloadavg()[0]}
    suffix = "-quick" if arguments.quick else ""
    name = f"kv-generation-{machine['date']}-{machine['machine']}{suffix}.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {"environment": machine, "policies": POLICIES, "lines": lines}
    (arguments.out / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
