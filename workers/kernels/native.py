"""Compiles the C++ kernels of `cpu/` for this very machine, once, and loads them.

The compiler is Zig's clang, a wheel like any other: a machine needs no toolchain. The library lies
in the user's cache under a digest of sources, compiler and processor, so that only the first start
compiles. The kernels run on torch's own OpenMP threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import structlog
import torch

log = structlog.get_logger()

SOURCES = Path(__file__).parent / "cpu"
OPTIONS = (
    *("-std=c++20", "-O3", "-march=native", "-nostdinc++", "-nostdlib++"),
    *("-fno-exceptions", "-fno-rtti", "-shared", "-fPIC"),
)
NEEDED_FLAGS = frozenset({"avx2", "fma"})


@cache
def library() -> ctypes.CDLL | None:
    """The kernels' library; None where the machine, or its installation, cannot have them."""
    openmp = Path(torch.__file__).parent / "lib" / "libgomp.so.1"
    is_installed = importlib.util.find_spec("ziglang") is not None
    if not (is_installed and openmp.exists() and cpu_flags() >= NEEDED_FLAGS):
        return None
    ctypes.CDLL(str(openmp), mode=ctypes.RTLD_GLOBAL)
    try:
        return ctypes.CDLL(str(_compiled()))
    except subprocess.CalledProcessError as error:
        log.warning("kernels_not_compiled", compiler=error.stderr.decode()[-2000:])
        return None


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets of the processor, in Linux's words; empty elsewhere."""
    facts = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not facts.exists():
        return frozenset()
    line = next(line for line in facts.read_text().splitlines() if line.startswith("flags"))
    return frozenset(line.partition(":")[2].split())


def _compiled() -> Path:
    """The library for these sources and this processor, compiled now if it is not there."""
    folder = _cache_folder()
    target = folder / f"kernels-{_digest()}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        command = [sys.executable, "-m", "ziglang", "c++", *OPTIONS]
        subprocess.run(
            [*command, "-o", str(made), str(SOURCES / "exports.cpp")],
            check=True,
            capture_output=True,
            env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": scratch, "ZIG_LOCAL_CACHE_DIR": scratch},
        )
        made.replace(target)
    return target


def _cache_folder() -> Path:
    """The user's cache, or a temporary folder where that cannot be written."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home) / "tandem"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="tandem-kernels-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="tandem-"))


def _digest() -> str:
    digest = hashlib.sha256(repr((OPTIONS, sorted(cpu_flags()))).encode())
    digest.update(importlib.metadata.version("ziglang").encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
