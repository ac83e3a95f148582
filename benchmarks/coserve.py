"""Co-serving against serving alone, training alone, and what a user would run instead.

    python -m benchmarks.coserve --out DIR [--quick] [--vllm-python PYTHON]

Every ratio comes from this run: phases are interleaved round by round, and medians are taken over
the rounds. Peers run in processes of their own and stand still while another measures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.bench_model import make_bench_model
from benchmarks.closed_loop import Bench, Load, PhaseResult
from scheduler.policy.slack import SloTargets
from workers.activations import SaveLevel

STREAMS = 8
ADAPTERS = 4
TARGETS = (1.5, 2.0)  # TPOT targets of co-serving, as factors on inference alone


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure."""

    rounds: int
    seconds: float
    co_serving_seconds: float


QUICK = Plan(rounds=2, seconds=15, co_serving_seconds=40)
FULL = Plan(rounds=5, seconds=30, co_serving_seconds=120)


class Peer:
    """A peer program that measures one round for each line it is sent."""

    def __init__(self, command: list[str], seconds: float) -> None:
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_WAIT_POLICY": "passive",
        }
        self.process = subprocess.Popen(
            [*command, "--wait", "--rounds", "1000", "--seconds", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        while self._line() != "READY":
            pass

    def round(self) -> dict[str, Any]:
        """One measured round."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        while not (line := self._line()).startswith("{"):
            pass
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        """End the program."""
        self.process.kill()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The peer {self.process.args} has ended.")
        return line.strip()


def median(values: list[float]) -> float:
    """The median; NaN of nothing."""
    return statistics.median(values) if values else float("nan")


def percentiles(values: list[float]) -> dict[str, float]:
    """p50 and p99."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {"p50": median(ordered), "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]}


def summary(rounds: list[PhaseResult]) -> dict[str, Any]:
    """Medians over rounds, percentiles over all their requests."""
    return {
        "output_tokens_per_s": median([r.output_tokens_per_s for r in rounds]),
        "train_tokens_per_s": median([r.train_tokens_per_s for r in rounds]),
        "ttft_ms": percentiles([v for r in rounds for v in r.ttft_ms]),
        "tpot_ms": percentiles([v for r in rounds for v in r.tpot_ms]),
        "requests": sum(len(r.tpot_ms) for r in rounds),
    }


def measure_ours(bench: Bench, plan: Plan, peers: dict[str, Peer]) -> dict[str, Any]:
    """Interleaved rounds of every phase of ours and of every peer."""
    phases: dict[str, tuple[Load | None, int]] = {
        "inference, no adapter": (Load(STREAMS, 0), 0),
        "inference, 4 adapters": (Load(STREAMS, ADAPTERS), 0),
        "training, 1 job": (None, 1),
        "training, 3 jobs": (None, 3),
    }
    ours: dict[str, list[PhaseResult]] = {name: [] for name in phases}
    theirs: dict[str, list[dict[str, Any]]] = {name: [] for name in peers}
    for _ in range(plan.rounds):
        for name, (load, jobs) in phases.items():
            ours[name].append(bench.run(load, jobs, plan.seconds))
        for name, peer in peers.items():
            theirs[name].append(peer.round())
    return {
        "tandem": {name: summary(rounds) for name, rounds in ours.items()},
        "peers": {name: peer_summary(rounds) for name, rounds in theirs.items()},
    }


def peer_summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The same for a peer's rounds."""
    result: dict[str, Any] = {}
    for key in ("output_tokens_per_s", "train_tokens_per_s"):
        if key in rounds[0]:
            result[key] = median([r[key] for r in rounds])
    for key in ("ttft_ms", "tpot_ms"):
        if key in rounds[0]:
            result[key] = percentiles([v for r in rounds for v in r[key]])
    return result


def measure_both(bench: Bench, plan: Plan, alone: dict[str, Any]) -> dict[str, Any]:
    """Co-serving under each TPOT target, at 1 and 8 streams, each beside its own two halves."""
    result = {}
    for streams in (1, STREAMS):
        load = Load(streams, ADAPTERS)
        served = summary([bench.run(load, 0, plan.seconds)])
        trained = alone["training, 1 job"]["train_tokens_per_s"]
        for factor in TARGETS:
            target_ms = factor * served["tpot_ms"]["p50"]
            bench.host.scheduler.classes = {"default": SloTargets(500.0, target_ms)}
            phase = bench.run(load, 1, plan.co_serving_seconds)
            both = summary([phase])
            met = sum(v <= target_ms for v in phase.tpot_ms)
            result[f"{streams} streams, TPOT target {factor}x"] = both | {
                "target_ms": target_ms,
                "alone_output_tokens_per_s": served["output_tokens_per_s"],
                "attainment": met / max(1, len(phase.tpot_ms)),
                "eta": both["output_tokens_per_s"] / served["output_tokens_per_s"]
                + both["train_tokens_per_s"] / trained,
                "law_error": law_error(phase),
            }
    return result


def law_error(phase: PhaseResult) -> dict[str, float]:
    """Relative error of predicted step times, where nothing interrupted the step."""
    errors = [
        abs(s["predicted_ms"] - s["step_ms"]) / s["step_ms"]
        for s in phase.steps
        if s["predicted_ms"] and s["step_ms"] > 1
    ]
    return percentiles(errors)


def measure_growth(bench: Bench, plan: Plan) -> dict[str, Any]:
    """Output rate by number of streams."""
    return {
        f"{streams} streams": summary([bench.run(Load(streams, ADAPTERS), 0, plan.seconds)])
        for streams in (1, 8, 32)
    }


def memory_per_token(bench: Bench) -> dict[str, int]:
    """Bytes that one training token keeps, over all layers, by save level."""
    trainer = bench.host.trainer
    layers = trainer.decoder.config.num_layers
    return {level.value: trainer.spec.bytes_per_token(level) * layers for level in SaveLevel}


def environment() -> dict[str, Any]:
    """Where this was measured."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def start_peers(
    model: Path, adapters: tuple[Path, ...], args: argparse.Namespace
) -> dict[str, Peer]:
    """Start peft, and vLLM with and without adapters where an interpreter with it is named."""
    here = Path(__file__).parent / "peers"
    plan = QUICK if args.quick else FULL
    peers = {
        "peft training": Peer(
            [sys.executable, str(here / "peft_train.py"), "--model", str(model)], plan.seconds
        )
    }
    if args.vllm_python:
        serve = [args.vllm_python, str(here / "vllm_serve.py"), "--model", str(model)]
        serve += ["--dtype", args.vllm_dtype]
        peers["vLLM, no adapter"] = Peer(serve, plan.seconds)
        with_adapters = [*serve, "--adapters", *map(str, adapters)]
        peers["vLLM, 4 adapters"] = Peer(with_adapters, plan.seconds)
    return peers


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--vllm-python", default="", help="Interpreter that has vllm or vllm-cpu.")
    parser.add_argument("--vllm-dtype", default="auto")
    args = parser.parse_args()
    plan = QUICK if args.quick else FULL
    torch.set_flush_denormal(True)
    with tempfile.TemporaryDirectory() as folder:
        model = make_bench_model(Path(folder), ADAPTERS)
        bench = Bench(model, kv_cache_tokens=32_768)
        peers = start_peers(model.folder, model.adapters, args)
        try:
            alone = measure_ours(bench, plan, peers)
        finally:
            for peer in peers.values():
                peer.close()
        result = {
            "environment": environment() | {"base_dtype": bench.host.info.dtype},
            **alone,
            "both": measure_both(bench, plan, alone["tandem"]),
            "growth": {} if args.quick else measure_growth(bench, plan),
            "activation_bytes_per_token": memory_per_token(bench),
        }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"coserve-{time.strftime('%Y-%m-%d')}-{platform.machine()}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
