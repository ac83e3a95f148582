"""A group whose second rank was started by itself, as on a machine of its own, over loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from scheduler.base_model import shipped_model
from tests.e2e.service import (
    BASE_MODEL,
    PATIENCE_S,
    descendants,
    finished,
    settings_environment,
    start,
    start_job,
    steps,
    until,
)
from tests.servers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@contextmanager
def _second_machine(log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m workers.remote_follower`, with nothing in common with the worker but settings."""
    models = json.dumps([str(shipped_model())])
    environment = settings_environment({**settings, "group_rank": "1", "base_models": models})
    with log.open("w") as file:
        process = subprocess.Popen(
            (sys.executable, "-m", "workers.remote_follower"),
            env=environment,
            stdout=file,
            stderr=file,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_worker_and_a_follower_started_apart_train_serve_and_find_each_other_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    address = f"127.0.0.1:{free_port()}"
    group = {"tensor_parallel": "2", "num_threads": "1", "group_address": address}
    quick = {"lease_s": "5", "renew_every_s": "1", "reap_every_s": "1"}
    with _second_machine(tmp_path / "follower.log", **group) as machine:
        service = start(tmp_path / "data", **group, **quick)
        try:
            client = service.tenant("a")
            size = {"examples": 30, "epochs": 2, "batch": 1}
            job = start_job(client, **size, checkpoint_every_steps=5, seed=7)
            until(lambda: (steps(client, job) or [0])[-1] >= 10)
            ((rank, _),) = descendants(machine.pid)

            os.kill(rank, signal.SIGKILL)

            done = finished(client, job)
            assert done.status == "succeeded", done.error
            assert sorted(steps(client, job)) == list(range(1, 61))  # none lost, none told twice
            machine.terminate()  # it stays for as long as the worker needs it
            for model in (BASE_MODEL, done.fine_tuned_model):
                answer = client.completions.create(model=str(model), prompt="hello", max_tokens=5)
                assert answer.usage is not None
                assert answer.usage.completion_tokens > 0
            assert machine.poll() is None
        finally:
            service.stop()
        assert machine.wait(PATIENCE_S) == 0
