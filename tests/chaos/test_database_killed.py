"""PostgreSQL is killed under jobs and streams, and a worker sleeps through its lease there."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from openai import OpenAI

from tests.chaos.ledger import Ledger
from tests.chaos.streams import EXACT, NUM_TOKENS, ask_all
from tests.e2e.cluster import running_cluster
from tests.e2e.service import descendants, finished, start_job, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import Popen

    from openai.types.fine_tuning import FineTuningJob

    from tests.e2e.cluster import Cluster
    from tests.servers.postgres import PostgresServer

NUM_STREAMS = 4
UNBROKEN_EPOCH = 2  # one for the check of its files, one for its training
LAST_STEP = 200
FIRST_STEPS = 20  # a job has so many before anything is broken
WORKERS = 2


@dataclass(frozen=True)
class Scale:
    """How much is at stake.

    Attributes:
        away_s: how long PostgreSQL stays away.
        lease_s: of jobs; longer than that.
        num_zombies: workers that are put to sleep, one after the other.
    """

    away_s: float
    lease_s: int
    num_zombies: int

    @property
    def kept_s(self) -> float:
        """The longest absence that surely costs no lease: one was renewed just before."""
        return self.lease_s * 5 / 6 - 1


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Scale(5.0, 15, 1), marks=pytest.mark.e2e, id="short"),
        pytest.param(Scale(20.0, 30, 5), marks=pytest.mark.chaos, id="full"),
    ],
)
def scale(request: pytest.FixtureRequest) -> Scale:
    return request.param


@pytest.fixture(scope="module")
def cluster(
    scale: Scale, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    settings = {
        "database_url": postgres.new_database(f"killed{time.time_ns()}"),
        "lease_s": str(scale.lease_s),
        "renew_every_s": str(scale.lease_s / 6),
        "reap_every_s": "1",
    }
    folder = tmp_path_factory.mktemp("postgres")
    with running_cluster(folder, WORKERS, **settings, **EXACT) as running:
        yield running


def _start(client: OpenAI) -> FineTuningJob:
    """A job whose every step comes out the same, whatever runs beside it."""
    return start_job(
        client, examples=LAST_STEP // 2, epochs=2, batch=1, checkpoint_every_steps=10, seed=7,
        deterministic=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(client: OpenAI, ledger: Ledger) -> object:
    """Digest of the adapter of a job that nothing has disturbed."""
    job = finished(client, _start(client))
    assert job.status == "succeeded"
    return ledger.digest(job.id)


def _has_begun(ledger: Ledger, job: FineTuningJob) -> bool:
    return len(ledger.job(job.id).steps) > FIRST_STEPS


def _is_as_unbroken(ledger: Ledger, job: FineTuningJob, unbroken: object) -> bool:
    """Whether a job brought the unbroken one's adapter, by every step once."""
    steps = tuple((step, 0) for step in range(1, LAST_STEP + 1))
    return ledger.job(job.id).steps == steps and ledger.digest(job.id) == unbroken


@contextmanager
def _followed(cluster: Cluster, key: str, job: FineTuningJob) -> Iterator[Iterator[str]]:
    """The lines of a job's live events."""
    url = f"{cluster.url}/v1/fine_tuning/jobs/{job.id}/events?stream=true"
    headers = {"authorization": f"Bearer {key}"}
    with httpx.stream("GET", url, headers=headers, timeout=30) as response:
        yield response.iter_lines()


def _refused(cluster: Cluster, key: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{cluster.url}/v1/fine_tuning/jobs", headers=headers, timeout=30)


async def test_a_killed_database_costs_no_step_and_no_stream(
    scale: Scale,
    cluster: Cluster,
    postgres: PostgresServer,
    client: OpenAI,
    ledger: Ledger,
    unbroken: object,
    found: Callable[[int, str, str], None],
) -> None:
    key = client.api_key
    whole = await ask_all(cluster.url, key, NUM_STREAMS)
    jobs = [_start(client) for _ in range(WORKERS)]
    until(lambda: all(_has_begun(ledger, job) for job in jobs))

    def strike() -> tuple[httpx.Response, float]:
        struck_s = time.monotonic()
        with _followed(cluster, key, jobs[0]) as lines:
            next(lines)
            postgres.kill()
            *_, last = (line for line in lines if line)
        assert "server_overloaded" in last
        refused = _refused(cluster, key)
        assert httpx.get(f"{cluster.url}/healthz").is_success
        time.sleep(scale.away_s)
        postgres.start()
        return refused, time.monotonic() - struck_s

    began = asyncio.Event()

    async def strike_midway() -> tuple[httpx.Response, float]:
        await began.wait()
        return await asyncio.to_thread(strike)

    streams, (refused, gone_s) = await asyncio.gather(
        ask_all(cluster.url, key, NUM_STREAMS, began.set), strike_midway()
    )
    until(lambda: _refused(cluster, key).is_success)

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "server_overloaded"
    assert "retry-after" in refused.headers
    assert all(stream.is_done and len(stream.pieces) == NUM_TOKENS for stream in streams)
    assert [one.text for one in streams[::2]] == [one.text for one in whole[::2]]  # greedy ones
    for job in jobs:
        assert finished(client, job).status == "succeeded"
        assert _is_as_unbroken(ledger, job, unbroken)
        assert ledger.job(job.id).epoch == UNBROKEN_EPOCH or gone_s > scale.kept_s
    assert cluster.ended == []
    is_kept = all(ledger.job(job.id).epoch == UNBROKEN_EPOCH for job in jobs)
    found(
        1,
        "steps once, the unbroken adapter, the same lease; streams whole; 503 meanwhile",
        f"{gone_s:.1f} s away, {'the same' if is_kept else 'another'} lease; the rest as expected",
    )


@contextmanager
def _asleep(worker: Popen[bytes]) -> Iterator[None]:
    """Stop a worker and its engine, as a machine that stands still does, for a while."""
    pids = [worker.pid, *(pid for pid, _ in descendants(worker.pid))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_worker_that_slept_through_its_lease_changes_nothing_and_works_on(
    scale: Scale,
    cluster: Cluster,
    client: OpenAI,
    ledger: Ledger,
    unbroken: object,
    found: Callable[[int, str, str], None],
) -> None:
    for _ in range(scale.num_zombies):
        job = _start(client)
        until(lambda job=job: _has_begun(ledger, job))
        held = ledger.job(job.id)
        assert held.owner is not None
        num_lost = cluster.log.read_text().count("lease_lost")
        with _asleep(cluster.workers[held.owner]):
            until(lambda job=job, held=held: _is_elsewhere(ledger, job, held.owner))
            accepted = ledger.accepted(job.id, held.epoch)
        assert finished(client, job).status == "succeeded"
        until(lambda n=num_lost: cluster.log.read_text().count("lease_lost") > n)

        assert ledger.accepted(job.id, held.epoch) == accepted
        assert ledger.job(job.id).epoch == held.epoch + 1
        assert _is_as_unbroken(ledger, job, unbroken)
        until(cluster.is_ready)
        assert cluster.ended == []
    found(scale.num_zombies, "0 writes accepted; the unbroken adapter", "as expected")


def _is_elsewhere(ledger: Ledger, job: FineTuningJob, owner: str | None) -> bool:
    return ledger.job(job.id).owner not in (None, owner)
