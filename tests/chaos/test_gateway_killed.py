"""A gateway is killed under streams or an evaluation; it comes back, and nothing was lost."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
from openai import OpenAI

from scheduler.store.tables import adapter_promotions, evaluations
from tests.chaos.ledger import Ledger
from tests.e2e.calls import call
from tests.e2e.cluster import running_cluster
from tests.e2e.evaluations import GRADERS, evaluated
from tests.e2e.service import (
    BASE_MODEL,
    PATIENCE_S,
    RunningService,
    descendants,
    finished,
    start,
    start_job,
    steps,
    until,
    upload,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openai.types.fine_tuning import FineTuningJob

    from tests.servers.postgres import PostgresServer

NUM_STREAMS = 8
PAUSE_S = 25.0  # the supervisor gives up after three deaths within a minute
UNBROKEN_EPOCH = 2  # one for the check of its files, one for its training
NUM_EVALUATED_ROWS = 150
ANYTHING = {"grader": "loss", "comparison": "at_most", "margin": 1000.0}  # is good enough


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
        until(lambda job=job: len(steps(patient, job)) > 2)
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


@pytest.mark.parametrize(
    "num_jobs", [pytest.param(5, marks=pytest.mark.e2e), pytest.param(200, marks=pytest.mark.chaos)]
)
def test_a_killed_gateway_costs_no_evaluation_and_no_unsent_hint(
    num_jobs: int,
    postgres: PostgresServer,
    tmp_path: Path,
    found: Callable[[int, str, str], None],
) -> None:
    database_url = postgres.new_database(f"gateway{num_jobs}")
    with (
        running_cluster(tmp_path, database_url=database_url, max_active_jobs="1000") as cluster,
        closing(Ledger(cluster.stores.database_url)) as ledger,
        OpenAI(
            base_url=f"{cluster.url}/v1", api_key=asyncio.run(cluster.new_key()), max_retries=8
        ) as client,
    ):
        trained = finished(client, start_job(client))
        file_id = upload(client, NUM_EVALUATED_ROWS)
        undisturbed = evaluated(client, _evaluate(client, trained, file_id))
        cluster.scheduler.kill()
        cluster.scheduler.wait()
        job_ids = [start_job(client).id for _ in range(num_jobs)]
        evaluation_id = _evaluate(client, trained, file_id, promote_if=[ANYTHING])
        until(lambda: ledger.work(evaluations, evaluation_id)[0] == "running")
        gateway = cluster.gateways[cluster.url]
        gateway.kill()
        gateway.wait()
        assert ledger.work(evaluations, evaluation_id) == ("running", 1)
        assert ledger.num_unsent >= num_jobs

        cluster.start_scheduler()
        cluster.start_gateway(httpx.URL(cluster.url).port)
        until(cluster.is_ready)
        again = evaluated(client, evaluation_id)
        until(lambda: ledger.are_over(job_ids), PATIENCE_S + num_jobs)

        assert ledger.work(evaluations, evaluation_id) == ("succeeded", 2)
        assert again["promoted"] is True
        assert ledger.num_rows(adapter_promotions, adapter_id=again["adapter_id"]) == 1
        assert again["num_rows"] == undisturbed["num_rows"] == NUM_EVALUATED_ROWS
        for name, reached in undisturbed["contenders"].items():
            assert again["contenders"][name]["means"] == pytest.approx(reached["means"], rel=1e-3)
        first, *others = (ledger.job(job_id) for job_id in job_ids)
        assert (first.status, first.epoch) == ("succeeded", UNBROKEN_EPOCH)
        assert others == [first] * (num_jobs - 1)
        until(lambda: ledger.num_unsent == 0)
    found(1 + num_jobs, "the evaluation and every job are over once", "as expected")


def _evaluate(client: OpenAI, job: FineTuningJob, file_id: str, **more: object) -> str:
    body = {"model": job.fine_tuned_model, "file": file_id, "graders": GRADERS}
    body |= {"max_answer_tokens": 16, **more}
    made: str = call(client, "POST", "evaluations", json=body).json()["id"]
    return made
