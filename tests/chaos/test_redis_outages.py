"""Redis is emptied, killed, full or away: jobs wait, are checked and train, and streams run.

SQL has it all, so no job is lost, none runs twice, and every process goes on by itself.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import redis
from openai import BadRequestError, OpenAI

from scheduler.domain.message_codec import encode
from scheduler.domain.messages import JobHint
from scheduler.store.channels.redis import RedisChannel
from scheduler.store.outbox import OutboxKind
from scheduler.store.tables import adapter_orders
from scheduler.tasks.celery_queue import make_celery
from scheduler.tasks.registry import ADAPTER_ORDER, TASKS, TaskQueue
from tests.chaos.ledger import Ledger
from tests.chaos.streams import EXACT, NUM_TOKENS, ask_all
from tests.e2e.calls import call
from tests.e2e.cluster import running_cluster
from tests.e2e.load import answer
from tests.e2e.service import finished, start_job_on, until, upload
from tests.servers.redis import LEAST_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.chaos.streams import Stream
    from tests.e2e.cluster import Cluster
    from tests.servers.postgres import PostgresServer
    from tests.servers.redis import RedisServer

NUM_STREAMS = 4
NUM_EARLY = 6  # jobs that are ordered before the rest, so that the outage finds some in every state
CHECKED_ROWS = 8_000  # a second or so of checking
UNBROKEN_EPOCH = 2  # one for the check of its files, one for its training
NUM_COPIES = 5
RECOVERY_S = 30.0  # from Redis's return to the end of every stream that it held up
EXPLICIT = ("worker_lost", "server_overloaded")


@dataclass(frozen=True)
class Scale:
    """How much is at stake.

    Attributes:
        num_jobs: that wait when Redis goes.
        away_s: how long it stays away.
        resend_after_s: when lost hints are sent again.
        patience_s: until all jobs must be over.
    """

    num_jobs: int
    away_s: float
    resend_after_s: int
    patience_s: float


def _empty(server: RedisServer, scale: Scale, meanwhile: Callable[[], None]) -> None:
    del scale
    server.flush()
    meanwhile()


def _kill(server: RedisServer, scale: Scale, meanwhile: Callable[[], None]) -> None:
    del scale
    server.kill()
    server.start()
    meanwhile()


def _fill(server: RedisServer, scale: Scale, meanwhile: Callable[[], None]) -> None:
    server.limit(LEAST_BYTES)
    meanwhile()
    time.sleep(scale.away_s)
    server.limit(0)


def _take_away(server: RedisServer, scale: Scale, meanwhile: Callable[[], None]) -> None:
    server.kill()
    meanwhile()
    time.sleep(scale.away_s)
    server.start()


OUTAGES = {"emptied": _empty, "killed": _kill, "full": _fill, "away": _take_away}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Scale(12, 5.0, 3, 180.0), marks=pytest.mark.e2e, id="short"),
        pytest.param(Scale(1000, 60.0, 60, 1800.0), marks=pytest.mark.chaos, id="full"),
    ],
)
def scale(request: pytest.FixtureRequest) -> Scale:
    return request.param


@pytest.fixture(scope="module")
def cluster(
    scale: Scale, postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    settings = {
        "database_url": postgres.new_database(f"redis{time.time_ns()}"),
        "max_active_jobs": "2000",
        "resend_after_s": str(scale.resend_after_s),
    }
    with running_cluster(tmp_path_factory.mktemp("redis"), **settings, **EXACT) as running:
        yield running


@pytest.fixture(scope="module")
def file_id(client: OpenAI) -> str:
    """A data set of one step."""
    return upload(client, 4)


@pytest.fixture(scope="module")
def num_events(client: OpenAI, file_id: str, ledger: Ledger) -> int:
    """Lines in the log of a job that nothing has disturbed."""
    job = finished(client, start_job_on(client, file_id))
    assert job.status == "succeeded"
    return ledger.job(job.id).num_events


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster, client: OpenAI) -> list[Stream]:
    return asyncio.run(ask_all(cluster.url, client.api_key, NUM_STREAMS))


def _ran_once(ledger: Ledger, job_ids: list[str], num_events: int) -> bool:
    records = Counter(ledger.job(job_id) for job_id in job_ids)
    (record,) = records  # all the same
    return (
        (record.status, record.epoch, record.num_checks) == ("succeeded", UNBROKEN_EPOCH, 1)
        and (record.steps, record.num_versions) == (((1, 0),), 1)
        and record.num_events == num_events
    )


def _told_truly(stream: Stream, unbroken: Stream, *, is_greedy: bool) -> bool:
    """Whether a stream is whole or ended with an error, and said nothing wrong or twice."""
    if is_greedy and not unbroken.text.startswith(stream.text):
        return False
    if stream.error is not None:
        return stream.error in EXPLICIT
    return stream.is_done and len(stream.pieces) == NUM_TOKENS


@pytest.mark.parametrize("outage", OUTAGES)
async def test_redis_costs_no_job_and_no_stream_its_end(
    outage: str,
    scale: Scale,
    cluster: Cluster,
    client: OpenAI,
    ledger: Ledger,
    file_id: str,
    num_events: int,
    unbroken: list[Stream],
    found: Callable[[int, str, str], None],
) -> None:
    checked_file = upload(client, CHECKED_ROWS)
    job_ids = [start_job_on(client, file_id).id for _ in range(NUM_EARLY)]
    cluster.scheduler.send_signal(signal.SIGSTOP)  # so that the others wait, until Redis goes
    checked = start_job_on(client, checked_file).id
    job_ids += [start_job_on(client, file_id).id for _ in range(scale.num_jobs - NUM_EARLY)]
    began = asyncio.Event()

    def order() -> None:
        job_ids.append(start_job_on(client, file_id).id)

    def strike() -> tuple[Counter[str], float]:
        """Break Redis in the middle of a check; the states that it found, and when it was back."""
        cluster.scheduler.send_signal(signal.SIGCONT)
        until(lambda: ledger.job(checked).num_checks == 1, scale.patience_s)
        seen = ledger.statuses(job_ids)
        OUTAGES[outage](cluster.redis, scale, order)
        return seen, time.monotonic()

    async def strike_midway() -> tuple[Counter[str], float]:
        await began.wait()
        return await asyncio.to_thread(strike)

    streams, (seen, back_s) = await asyncio.gather(
        ask_all(cluster.url, client.api_key, NUM_STREAMS, began.set), strike_midway()
    )
    until(lambda: ledger.job(checked).status != "validating_files", scale.patience_s)
    with suppress(BadRequestError):  # it may be over already
        client.fine_tuning.jobs.cancel(checked)
    until(lambda: ledger.are_over([*job_ids, checked]), scale.patience_s)

    assert _ran_once(ledger, job_ids, num_events)
    assert ledger.job(checked).num_checks == 1
    assert all(
        _told_truly(stream, unbroken[number], is_greedy=number % 2 == 0)
        for number, stream in enumerate(streams)
    ), [(stream.error, stream.is_done, len(stream.pieces)) for stream in streams]
    assert max(stream.ended_s for stream in streams) < back_s + RECOVERY_S
    answer(client)
    assert cluster.ended == []
    states = ", ".join(f"{count} {status}" for status, count in sorted(seen.items()))
    num_whole = sum(stream.is_done for stream in streams)
    found(
        len(job_ids),
        "0 lost, 0 run twice; streams whole or ended by an error",
        f"{outage} with {states}: 0 lost, 0 run twice; {num_whole} of {NUM_STREAMS} streams whole",
    )


async def test_what_is_delivered_five_times_happens_once(
    scale: Scale,
    cluster: Cluster,
    client: OpenAI,
    ledger: Ledger,
    file_id: str,
    num_events: int,
    found: Callable[[int, str, str], None],
) -> None:
    trained = finished(client, start_job_on(client, file_id))
    adapter_id = trained.model_extra["adapter_id"]
    version = f"adapters/{adapter_id}/versions/1"
    job_ids = [start_job_on(client, file_id).id for _ in range(scale.num_jobs)]
    order = call(client, "POST", f"{version}/compress", json={"codec": "int8"}).json()
    work_ids = {name: [order["id"]] if name == ADAPTER_ORDER else job_ids for name in TASKS}

    early_ids = {name: ids for name, ids in work_ids.items() if name != OutboxKind.CLEAN_JOB}
    await _deliver(cluster, early_ids, NUM_COPIES)
    until(lambda: ledger.are_over(job_ids), scale.patience_s)
    until(lambda: ledger.work(adapter_orders, order["id"])[0] == "succeeded")
    await _deliver(cluster, work_ids, NUM_COPIES)
    until(lambda: _num_undelivered(cluster) == 0, scale.patience_s)
    assert finished(client, start_job_on(client, file_id)).status == "succeeded"

    assert _ran_once(ledger, job_ids, num_events)
    assert ledger.work(adapter_orders, order["id"]) == ("succeeded", 1)
    assert ledger.job(trained.id).num_versions == 2  # what was trained, and that one compressed
    assert cluster.ended == []
    found(len(job_ids), f"{NUM_COPIES} copies, before and after: one effect", "one effect")


async def _deliver(cluster: Cluster, work_ids: dict[str, list[str]], num_copies: int) -> None:
    """Send every task so many times, in any order, and as many hints to all workers."""
    celery, channel = make_celery(cluster.broker_url), RedisChannel(cluster.channel_url)
    sent = [(name, id_) for name, ids in work_ids.items() for id_ in ids] * num_copies
    random.Random(0).shuffle(sent)
    for name, work_id in sent:
        await asyncio.to_thread(celery.send_task, name, args=[work_id])
    for worker in await channel.workers():
        for name, work_id in sent:
            if name != ADAPTER_ORDER:
                await channel.append(worker.inbox, encode(JobHint(job_id=work_id)))
    celery.close()
    await channel.close()


def _num_undelivered(cluster: Cluster) -> int:
    """Messages of Celery that nobody has taken yet."""
    with closing(redis.Redis.from_url(cluster.broker_url)) as broker:
        return sum(broker.llen(queue) for queue in TaskQueue)
