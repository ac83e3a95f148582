"""Every Triton kernel compiles for a Hopper card and fits its shared memory; no card is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
PROGRAM = Path(__file__).parents[1] / "unit/workers/compile_kernels.py"
KERNELS = {
    *("_accumulate", "_attend", "_backward", "_column_sums", "_contract", "_delta", "_expand"),
    *(
        "_forward",
        "_grad_keys",
        "_grad_queries",
        "_join",
        "_log_sums",
        "_rotate",
        "_sample",
        "_store",
        "_store_heads",
    ),
}


def test_every_kernel_compiles_for_a_card(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path.cwd())}

    done = subprocess.run(
        [sys.executable, PROGRAM], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert set(done.stdout.split()) == KERNELS
