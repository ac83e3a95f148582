"""`tandem up` as a process: started on a fresh data folder, stopped as an operator stops it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

READY = re.compile(r"ready at (\S+)/v1")
STOP_TIMEOUT_S = 20.0
# Enough for the callers here; what a worker compiles and captures at its start grows with both.
LIMITS = {"TANDEM_MAX_RANK": "16", "TANDEM_MAX_NUM_SEQUENCES": "16"}
PROCESSES = ("scheduler.cli", "scheduler.__main__", "service.__main__", "workers.__main__")


@dataclass(frozen=True, slots=True)
class ServiceProcess:
    """Where the service listens.

    Attributes:
        seconds_to_ready: from its start until it answers.
    """

    url: str
    admin_key: str
    seconds_to_ready: float

    def tenant_key(self) -> str:
        """A key of a new tenant."""
        headers = {"Authorization": f"Bearer {self.admin_key}"}
        with httpx.Client(base_url=f"{self.url}/v1/admin", headers=headers) as admin:
            tenant = admin.post("/tenants", json={"name": "bench"}).raise_for_status().json()["id"]
            made = admin.post(f"/tenants/{tenant}/keys", json={"name": "bench"})
        key: str = made.raise_for_status().json()["value"]
        return key


def missing_package() -> str | None:
    """What Python says of the first package that the service lacks here; None: nothing is."""
    command = [sys.executable, "-c", f"import {', '.join(PROCESSES)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


@contextmanager
def running_service(data: Path, base: Path, device: str) -> Iterator[ServiceProcess]:
    """The service over one base model on one device (`cpu`, or a card's number).

    Raises:
        RuntimeError: it did not start; with what it said.
    """
    data.mkdir()
    options = ["--port", "0", "--data", str(data), "--devices", device, "--base-model", str(base)]
    log, began_s = data / "service.log", time.perf_counter()
    with log.open("wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "scheduler.cli", "up", *options],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | LIMITS,
        )
    try:
        url = _ready_url(process)
        if url is None:
            raise RuntimeError(log.read_text()[-2000:])
        key = (data / "admin.key").read_text().strip()
        yield ServiceProcess(url, key, time.perf_counter() - began_s)
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def _ready_url(process: subprocess.Popen[str]) -> str | None:
    """The address from the service's line about it; None when it ended without one."""
    assert process.stdout is not None
    return next((found.group(1) for line in process.stdout if (found := READY.search(line))), None)
