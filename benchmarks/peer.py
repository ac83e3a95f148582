"""A peer program: a process of its own that measures when told to, and stands still otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bench_model import BenchModel
from benchmarks.peers.rounds import READY
from benchmarks.plan import ADAPTERS, PEER_STREAMS

REPO = Path(__file__).parents[1]
PEFT = "peft training"
PEFT_CHECKPOINTED = "peft training, checkpointing"
PEFT_SERVING = "peft serving, 4 adapters"
VLLM = "vLLM, no adapter"
VLLM_LORA = "vLLM, 4 adapters"
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # In one process, as our engine is driven; a core of its own would go on while others measure.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@dataclass(frozen=True, slots=True)
class PeerPrograms:
    """Which interpreters and dtypes peers run with; no vLLM without an interpreter that has it."""

    vllm_python: str
    vllm_dtype: str
    peft_dtype: str

    def commands(self, model: BenchModel) -> dict[str, list[str]]:
        """Every peer's command line by name."""
        folder = ["--model", str(model.folder)]
        adapters = ["--adapters", *map(str, model.adapters[:ADAPTERS])]
        streams = ["--streams", str(PEER_STREAMS)]
        own = [sys.executable, "-m"]
        dtype = [*folder, "--dtype", self.peft_dtype]
        commands = {
            PEFT: [*own, "benchmarks.peers.peft_train", *dtype],
            PEFT_CHECKPOINTED: [*own, "benchmarks.peers.peft_train", *dtype, "--checkpointing"],
            PEFT_SERVING: [*own, "benchmarks.peers.peft_serve", *dtype, *adapters, *streams],
        }
        if self.vllm_python:
            serve = [self.vllm_python, "-m", "benchmarks.peers.vllm_serve", *folder, *streams]
            serve += ["--dtype", self.vllm_dtype]
            commands |= {VLLM: serve, VLLM_LORA: [*serve, *adapters]}
        return commands


class Peer:
    """One running peer."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=REPO,
            env=os.environ | ENVIRONMENT,
        )

    def wait_until_ready(self) -> None:
        """Wait until it is loaded and warm.

        Raises:
            RuntimeError: it has ended instead; the message holds the end of what it complained of.
        """
        while self._line() != READY:
            pass

    def start(self) -> None:
        """Begin a round."""
        self._tell()

    def stop(self) -> dict[str, Any]:
        """End the round after the step in work; what it measured."""
        self._tell()
        while not (line := self._line()).startswith("{"):
            pass
        result: dict[str, Any] = json.loads(line)
        return result

    def round(self, seconds: float) -> dict[str, Any]:
        """One round of at least so many seconds."""
        self.start()
        time.sleep(seconds)
        return self.stop()

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            complaint = self._errors.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{self.name} has ended: {complaint}")
        return line.strip()


def start_peers(programs: PeerPrograms, model: BenchModel) -> dict[str, Peer]:
    """Start all peers, and wait until every one stands still."""
    peers = {name: Peer(name, command) for name, command in programs.commands(model).items()}
    try:
        for peer in peers.values():
            peer.wait_until_ready()
    except RuntimeError:
        close_all(peers)
        raise
    return peers


def close_all(peers: dict[str, Peer]) -> None:
    """End all programs."""
    for peer in peers.values():
        peer.close()


def round_beside(serving: Peer, training: Peer, seconds: float) -> dict[str, Any]:
    """Both at once on the same cores; serving begins first and ends last, so it is never alone."""
    serving.start()
    training.start()
    time.sleep(seconds)
    trained = training.stop()
    return serving.stop() | trained
