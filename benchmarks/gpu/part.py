"""One part in a process of its own: an error, or a broken card, ends no other part.

python -m benchmarks.gpu.part NAME FILE --device cuda [--tiny]
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu.setting import Figures, Setting


@dataclass(frozen=True, slots=True)
class Part:
    """What measures, and the seconds that it may take on a card."""

    function: str
    limit_s: float


PARTS = {
    "ceilings": Part("ceilings:measure", 30),
    "kernel_checks": Part("kernel_checks:measure", 90),
    "decode": Part("decode:measure", 120),
    "prefill": Part("prefill:measure", 45),
    "training": Part("training:measure", 60),
    "coserving": Part("coserving:measure", 150),
    "peft_training": Part("peers:training", 45),
    "transformers_generate": Part("peers:generate", 60),
    "transformers_continuous_batching": Part("peers:continuous_batching", 45),
    "peft_training_checkpointed": Part("peers:checkpointed_training", 45),
}


def measure(name: str, setting: Setting) -> Figures:
    """The figures of a part; its module is imported only now."""
    module, _, function = PARTS[name].function.partition(":")
    figures: Figures = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(
        setting
    )
    return figures


def main() -> None:
    """Measure one part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    setting = Setting(torch.device(args.device), args.tiny)
    args.file.write_text(json.dumps(measure(args.name, setting)))


if __name__ == "__main__":
    main()
