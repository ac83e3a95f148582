"""The gateway is killed under streams; it comes back, and no job has noticed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import httpx
import openai
import pytest

from tests.chaos.ledger import Ledger
from tests.e2e.service import (
    BASE_MODEL,
    RunningService,
    descendants,
    finished,
    start,
    start_job,
    steps,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openai import OpenAI

NUM_STREAMS = 8
PAUSE_S = 25.0  # the supervisor gives up after three deaths within a minute
UNBROKEN_EPOCH = 2  # one for the check of its files, one for its training


@pytest.fixture
def service(tmp_path: Path) -> Iterator[RunningService]:
    running = start(tmp_path / "data")
    yield running
    running.stop()


def _stream(client: OpenAI, began: threading.Barrier, endings: list[str]) -> None:
    """Read an answer to its end, or to what came instead of it."""
    try:
        with client.completions.create(
            model=BASE_MODEL, prompt="hello", max_tokens=1000, stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:  # fmt: skip
            chunks = iter(stream)
            next(chunks)
            began.wait()
            *_, last = chunks
            endings.append(str(last.choices[0].finish_reason))
    except (httpx.TransportError, openai.APIError) as error:
        endings.append(type(error).__name__)


def _kill_gateway(service: RunningService) -> None:
    children = descendants(service.process.pid)
    pid = next(pid for pid, command in children if "-m service" in command)
    os.kill(pid, signal.SIGKILL)


def _is_ready(service: RunningService) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{service.url}/readyz", trust_env=False).is_success
    return False


@pytest.mark.parametrize(
    "repeats", [pytest.param(1, marks=pytest.mark.e2e), pytest.param(5, marks=pytest.mark.chaos)]
)
def test_a_killed_gateway_ends_its_streams_and_no_job(
    repeats: int, service: RunningService, found: Callable[[int, str, str], None]
) -> None:
    client = service.tenant("streams").with_options(max_retries=0)
    patient = client.with_options(max_retries=8)
    for repeat in range(repeats):
        threading.Event().wait(PAUSE_S if repeat else 0)
        job = start_job(patient, examples=100, epochs=2, batch=1, checkpoint_every_steps=20)
        until(lambda job=job: len(steps(patient, job)) > 2)  # type: ignore[misc]
        began, endings = threading.Barrier(NUM_STREAMS + 1), list[str]()
        streams = [
            threading.Thread(target=_stream, args=(client, began, endings))
            for _ in range(NUM_STREAMS)
        ]
        for stream in streams:
            stream.start()
        began.wait()
        _kill_gateway(service)
        for stream in streams:
            stream.join(10)
        assert len(endings) == NUM_STREAMS, "a stream hangs"
        until(lambda: _is_ready(service))
        assert finished(patient, job).status == "succeeded"
        with closing(Ledger.of_folder(service.data)) as ledger:
            record = ledger.job(job.id)
        assert record.epoch == UNBROKEN_EPOCH
        assert record.steps == tuple((step, 0) for step in range(1, 201))
    found(repeats, "streams end explicitly; jobs undisturbed", "as expected")
