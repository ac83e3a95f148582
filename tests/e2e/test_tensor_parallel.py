"""A worker of two ranks serves and trains; when one is killed the job goes on."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.e2e.service import BASE_MODEL, descendants, finished, start, start_job, steps, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.service import RunningService

pytestmark = pytest.mark.e2e


def _followers(service: RunningService) -> list[int]:
    children = descendants(service.process.pid)
    return [pid for pid, command in children if "workers.engine_follower" in command]


def test_a_job_outlives_a_rank_of_its_group(tmp_path: Path) -> None:
    quick = {"lease_s": "5", "renew_every_s": "1", "reap_every_s": "1"}
    service = start(tmp_path, tensor_parallel="2", num_threads="1", **quick)
    try:
        client = service.tenant("a")
        job = start_job(client, examples=30, epochs=2, batch=1, checkpoint_every_steps=5, seed=7)
        until(lambda: (steps(client, job) or [0])[-1] >= 10)
        (follower,) = _followers(service)

        os.kill(follower, signal.SIGKILL)

        done = finished(client, job)
        assert done.status == "succeeded", done.error
        assert sorted(steps(client, job)) == list(range(1, 61))  # none lost, none told twice
        assert _followers(service) not in ([], [follower])
        for model in (BASE_MODEL, done.fine_tuned_model):
            answer = client.completions.create(model=str(model), prompt="hello", max_tokens=5)
            assert answer.usage is not None
            assert answer.usage.completion_tokens > 0
    finally:
        service.stop()
