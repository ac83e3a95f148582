"""The file of a run's results: named after what was measured, the day and the machine.

It is written anew with whatever is added, so that what was measured survives whatever comes after.
"""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

from benchmarks.machine import environment
from benchmarks.spread import rounded

RESULTS = Path("benchmarks/results")


def result_path(folder: Path, name: str, suffix: str = "") -> Path:
    """Where a run writes, for instance kv-2026-11-25-x86_64-quick.json; the folder exists then."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = (name, time.strftime("%Y-%m-%d"), platform.machine(), suffix)
    return folder / f"{'-'.join(filter(None, parts))}.json"


class ResultFile:
    """What has been measured so far, and the file that holds it."""

    def __init__(self, folder: Path, name: str, suffix: str = "", *, vllm_python: str = "") -> None:
        self.path = result_path(folder, name, suffix)
        self.environment = environment(vllm_python)
        self.figures: dict[str, object] = {}

    def add(self, figures: dict[str, object]) -> None:
        """Keep some more figures, and write all of them."""
        self.figures |= figures
        machine = self.environment | {"load_after": os.getloadavg()[0]}
        everything = rounded({"environment": machine, **self.figures})
        self.path.write_text(json.dumps(everything, indent=1) + "\n")
