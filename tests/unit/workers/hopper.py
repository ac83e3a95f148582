"""Triton kernels compiled for a Hopper card where there is none, and what their machine code tells.

A driver that only names the card takes the place of CUDA's, so Triton chooses types, alignment and
options of a launch as it would there; nothing is launched.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
SM_REGISTERS = 65536
SM_THREADS = 2048
SM_BLOCKS = 32
SM_SHARED_BYTES = 228 << 10
BLOCK_SHARED_BYTES = 227 << 10  # the most that one block may have
RESERVED_SHARED_BYTES = 1 << 10  # of every block, by the system
REGISTERS_AT_ONCE = 256  # a warp's registers are handed out in lots of so many
WARP = 32
OPCODE = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)


class HopperDriver:
    """What Triton asks a driver about the card before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, WARP)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel's machine code, counted.

    Attributes:
        registers: of a thread.
        stack_bytes: local memory of a thread; registers that did not fit lie there.
        opcodes: how often each instruction stands in the code, by its full name.
    """

    name: str
    threads: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    opcodes: Counter[str]

    @property
    def blocks_on_sm(self) -> int:
        """Blocks that a multiprocessor holds at once."""
        warps = self.threads // WARP
        a_warp = -(-self.registers * WARP // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
        return min(
            SM_BLOCKS,
            SM_THREADS // self.threads,
            SM_REGISTERS // (a_warp * warps),
            SM_SHARED_BYTES // (self.shared_bytes + RESERVED_SHARED_BYTES),
        )

    @property
    def occupancy(self) -> float:
        """Share of a multiprocessor's threads that its blocks fill."""
        return self.blocks_on_sm * self.threads / SM_THREADS

    @property
    def products(self) -> str:
        """Which unit multiplies: `wgmma`, `mma` or none."""
        names = {name.split(".")[0] for name in self.opcodes}
        return "wgmma" if "HGMMA" in names else "mma" if "HMMA" in names else ""

    def accesses(self, opcode: str) -> dict[int, int]:
        """Instructions of one kind by the bytes that each moves for a thread."""
        widths: Counter[int] = Counter()
        for name, count in self.opcodes.items():
            kind, *parts = name.split(".")
            if kind == opcode:
                widths[_bytes_of(parts)] += count
        return dict(sorted(widths.items()))


def _bytes_of(parts: list[str]) -> int:
    bits = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((bits[part] for part in parts if part in bits), 4)


class Compiler:
    """Takes the place of every launch: compiles the kernel, and keeps its figures."""

    def __init__(self) -> None:
        self.kernels: list[tuple[str, CompiledKernel]] = []
        self._part = ""
        self._compile = JITFunction.run

    def install(self) -> None:
        driver.set_active(HopperDriver())
        compiler = self

        def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
            del grid, warmup
            compiled = compiler._compile(kernel, *args, grid=(1,), warmup=True, **options)
            compiler.kernels.append((compiler._part, read(kernel.__name__, compiled)))

        JITFunction.run = run

    def begin(self, part: str) -> None:
        """What is launched from here on is told under this name."""
        self._part = part


def read(name: str, compiled: Any) -> CompiledKernel:
    """Figures of a kernel from its machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return CompiledKernel(
        name,
        compiled.metadata.num_warps * WARP,
        int(found[1]),
        int(found[2]),
        compiled.metadata.shared,
        Counter(OPCODE.findall(code)),
    )


def _run(tool: str, *arguments: str) -> str:
    done = subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
