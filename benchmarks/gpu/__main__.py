"""Builds, checks and measures everything on one card in under nine minutes.

    python -m benchmarks.gpu --out DIR [--device cuda|cpu] [--tiny] [--parts NAME ...]

Every part runs in a process of its own and within a limit of its own, which together are less than
nine minutes; what one measured is written before the next begins. `--tiny` runs all of it at toy
sizes, also on a CPU. Needed beside torch and Triton: transformers, peft, pydantic,
pydantic-settings and structlog; no network.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import PARTS
from benchmarks.gpu.setting import Figures
from benchmarks.gpu.table import table

BUDGET_S = 535.0
TINY_LIMIT_S = 300.0  # toy sizes are for seeing that it runs, maybe on a busy machine
LEAST_S = 10.0  # a part that has less left is not begun
PACKAGES = ("torch", "triton", "torchao", "transformers", "peft", "numpy")


def main() -> None:
    """Measure, write, print."""
    args = _arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu-{time.strftime('%Y-%m-%d')}-{_card_slug(args.device)}.json"
    results: dict[str, Any] = {"environment": environment(args.device, args.tiny), "parts": {}}
    began_s = time.perf_counter()
    for name in args.parts:
        left_s = BUDGET_S - (time.perf_counter() - began_s)
        limit_s = TINY_LIMIT_S if args.tiny else min(PARTS[name].limit_s, left_s)
        results["parts"][name] = run_part(name, args, limit_s)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}: done after {time.perf_counter() - began_s:.0f} s", flush=True)
    print(table(results))
    print(f"\n{time.perf_counter() - began_s:.0f} s; {path}")
    if any("error" in part for part in results["parts"].values()):
        raise SystemExit(1)


def run_part(name: str, args: argparse.Namespace, limit_s: float) -> Figures:
    """The figures of one part, and its error if it has one; `seconds` is what it took."""
    if limit_s < LEAST_S:
        return {"error": "no time left"}
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "benchmarks.gpu.part", name, str(file)]
        command += ["--device", args.device, *(["--tiny"] if args.tiny else [])]
        error = failure_of(command, limit_s)
        figures: Figures = json.loads(file.read_text()) if file.exists() else {}
    figures |= {"seconds": round(time.perf_counter() - began_s, 1)}
    return figures | ({"error": error} if error else {})


def failure_of(command: list[str], limit_s: float) -> str | None:
    """Run a program and all that it starts, and end them at the limit; how it failed, if it did."""
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True) as child:
            try:
                child.wait(limit_s)
            except subprocess.TimeoutExpired:
                return f"took longer than {limit_s:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
        said.seek(0)
        return said.read().strip()[-3000:] or f"rc {child.returncode}" if child.returncode else None


def environment(device: str, is_tiny: bool) -> dict[str, object]:
    """Date, card, versions and sizes."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "card": card_name(device),
        "cpu_cores": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: _version(name) for name in PACKAGES},
        "is_tiny": is_tiny,
    }


def card_name(device: str) -> str:
    """The card's own name, or that there is none."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _card_slug(device: str) -> str:
    return card_name(device).lower().replace(" ", "-")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
