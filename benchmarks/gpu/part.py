"""One part in a process of its own: an error, or a broken card, ends no other part.

python -m benchmarks.gpu.part NAME FILE --device cuda [--tiny]

A part gives its figures piece by piece. What it has given is in FILE, whatever becomes of the rest.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.setting import Figures, Setting


@dataclass(frozen=True, slots=True)
class Part:
    """What measures, and the seconds that it may take on a card."""

    function: str
    limit_s: float


# By what a missing figure would cost: a run that is cut short has the first ones.
PARTS = {
    "ceilings": Part("ceilings:measure", 12),
    "kernel_checks": Part("kernel_checks:measure", 35),
    "decode": Part("decode:measure", 45),
    "training": Part("training:measure", 45),
    "coserving": Part("coserving:measure", 130),
    "prefill": Part("prefill:measure", 15),
    "contexts": Part("contexts:measure", 50),
    "peft": Part("peers:training", 20),
    "memory": Part("memory:measure", 38),
    "kernel_times": Part("kernel_times:measure", 25),
    "transformers": Part("peers:serving", 25),
    "service": Part("service:measure", 38),
    "attention_peers": Part("attention_peers:measure", 15),
    "tuning": Part("tuning:measure", 28),
}


def pieces(name: str, setting: Setting) -> Iterator[Figures]:
    """The figures of a part, as they come; its module is imported only now.

    Where a package that it needs is not installed, the part has no other figure than that.
    """
    module, _, function = PARTS[name].function.partition(":")
    try:
        found = importlib.import_module(f"benchmarks.gpu.{module}")
    except ModuleNotFoundError as error:
        yield {"missing": str(error)}
        return
    yield from getattr(found, function)(setting)


def measure(name: str, setting: Setting) -> Figures:
    """All figures of a part."""
    figures: Figures = {}
    for piece in pieces(name, setting):
        figures |= piece
    return figures


def main() -> None:
    """Measure one part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    figures: Figures = {}
    for piece in pieces(args.name, Setting(torch.device(args.device), args.tiny)):
        figures |= piece
        _replace(args.file, json.dumps(figures))


def _replace(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


if __name__ == "__main__":
    main()
