"""SIGTERM, as those who use the service at that moment see it."""

from __future__ import annotations

import signal
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.e2e.service import BASE_MODEL, RunningService, start, start_job, steps, until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

BOUND_S = 45.0  # the worker's drain timeout, and half as much again for everything else
ANSWER_TOKENS = 300


@pytest.fixture
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = start(tmp_path_factory.mktemp("drains"))
    yield running
    running.stop()


def _one(service: RunningService, query: str, job_id: str) -> tuple[object, ...]:
    with closing(sqlite3.connect(service.data / "tandem.db")) as database:
        found: tuple[object, ...] = database.execute(query, (job_id,)).fetchone()
        return found


def test_a_stream_is_told_to_its_end_and_a_job_given_back_with_all_its_steps(
    service: RunningService,
) -> None:
    client = service.tenant("in-the-middle")
    job = start_job(client, examples=200, epochs=20, batch=1, checkpoint_every_steps=100_000)
    until(lambda: len(steps(client, job)) > 2)

    with client.completions.create(
        model=BASE_MODEL,
        prompt="How are you?",
        max_tokens=ANSWER_TOKENS,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    ) as stream:
        chunks = iter(stream)
        next(chunks)
        service.process.send_signal(signal.SIGTERM)
        told_s = time.monotonic()
        *_, last = chunks
    status = service.stop()

    assert status == 0
    assert time.monotonic() - told_s < BOUND_S
    assert last.choices[0].finish_reason == "length"
    state = "SELECT status, lease_owner, num_crashes FROM jobs WHERE id = ?"
    assert _one(service, state, job.id) == ("queued", None, 0)
    (trained,) = _one(service, "SELECT max(step) FROM metrics WHERE job_id = ?", job.id)
    (kept,) = _one(service, "SELECT max(step) FROM checkpoints WHERE job_id = ?", job.id)
    assert kept == trained
    assert "drain_timed_out" not in service.log
    assert "process_killed" not in service.log
