"""Fetches what the service needs beside torch, Triton and transformers, for a card's machine.

    python -m benchmarks.gpu.bring_packages FOLDER [PACKAGE ...] [--python 3.12]

The folder then goes along and onto PYTHONPATH, where no network is. In it: the packages that are
named (what this project needs, when none is) and all that they need, less what is there anyway; in
the versions of constraints.txt, built for x86-64 Linux. The part `quantized` needs torchao, which
does not fit beside the service's: it may go with `torchao pydantic pydantic-settings structlog`.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = "tandem-llm"
THERE = ("torch", "triton")
LEFT_OUT = (
    *("numpy", "tokenizers", "safetensors", "huggingface-hub"),  # transformers brings them
    "ziglang",  # builds kernels for CPUs
    "openai",  # for callers
)
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
MOST_BYTES = 64 << 20  # what may be carried to a lent machine


def main() -> None:
    """Fetch, unpack, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="The interpreter that will import them.")
    parser.add_argument("packages", nargs="*", default=[PROJECT], help="What is needed there.")
    args = parser.parse_args()
    names = closure(args.packages, LEFT_OUT) - closure(THERE) - {PROJECT}
    fetch(pinned(names, (ROOT / "constraints.txt").read_text()), args.folder, args.python)
    num_bytes = sum(file.stat().st_size for file in args.folder.rglob("*") if file.is_file())
    print(f"{len(names)} packages, {num_bytes / 2**20:.1f} MiB in {args.folder}")
    if num_bytes > MOST_BYTES:
        raise SystemExit(f"That is more than {MOST_BYTES >> 20} MiB.")


def closure(names: Iterable[str], left_out: Iterable[str] = ()) -> set[str]:
    """Packages, and all that they need, as far as it is installed here."""
    seen: set[str] = set()
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        asked = waiting.pop()
        name = canonicalize_name(asked.name)
        if name in left_out or str(asked) in seen:
            continue
        seen.add(str(asked))
        needs = needs_of(asked)
        if needs is not None:
            found.add(name)
            waiting += needs
    return found


def needs_of(asked: Requirement) -> list[Requirement] | None:
    """What a package with its extras asks for on this platform; None: it is not installed."""
    try:
        needs = [Requirement(text) for text in requires(asked.name) or []]
    except PackageNotFoundError:
        return None
    extras = ("", *asked.extras)
    return [
        need
        for need in needs
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras)
    ]


def pinned(names: Iterable[str], constraints: str) -> list[str]:
    """NAME==VERSION of each, as constraints.txt has it."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)
    versions = {str(canonicalize_name(name)): version for name, version in lines}
    return [f"{name}=={versions[name]}" for name in sorted(names)]


def fetch(wanted: list[str], folder: Path, python: str) -> None:
    """Unpack the wheels of exactly these packages."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*command, *wanted], check=True)


if __name__ == "__main__":
    main()
