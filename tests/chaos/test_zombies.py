"""A worker sleeps through the end of its lease, in the middle of whatever it was writing."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from scheduler.store.checks import Checks
from scheduler.store.database import Database, migrate
from scheduler.store.leases import Leases
from scheduler.store.tenants import Tenants
from tests.chaos.ledger import Ledger
from tests.integration.store_kit import create_job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.servers.postgres import PostgresServer

LEASE_S = 0.3
PATIENCE_S = 60.0


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path}/t.db"
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return postgres.new_database(f"zombies{time.time_ns()}")


@pytest.fixture
async def db(url: str) -> Iterator[Database]:
    await migrate(url)
    database = Database(url)
    yield database
    await database.close()


@pytest.fixture
def zombie(url: str, db: Database) -> Iterator[subprocess.Popen[str]]:
    del db  # its tables are there
    command = [sys.executable, "-m", "tests.chaos.zombie", url, str(LEASE_S)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


async def _queued(db: Database) -> str:
    tenant = await Tenants(db).create(f"t{time.time_ns()}")
    job = await create_job(db, tenant)
    check = await Checks(db).begin(job.id)
    assert check is not None
    await Checks(db).succeed(check, train_key="t", valid_key=None, message="ok")
    return job.id


def _until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def _put_to_sleep(zombie: subprocess.Popen[str], url: str) -> None:
    """Stop it wherever it is.

    In SQLite whoever sleeps inside a transaction keeps every writer out, successors too: there is
    nothing to take over before it wakes up. So it is woken, and stopped a little later.
    """
    zombie.send_signal(signal.SIGSTOP)
    while url.startswith("sqlite") and _is_locked(url):
        zombie.send_signal(signal.SIGCONT)
        time.sleep(0.001)
        zombie.send_signal(signal.SIGSTOP)


def _is_locked(url: str) -> bool:
    with closing(sqlite3.connect(str(make_url(url).database), timeout=0)) as database:
        try:
            database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


async def _taken_over(db: Database, job_id: str) -> int:
    """Take the job as its next worker once the zombie's lease is over; the new epoch."""
    deadline_s = time.monotonic() + PATIENCE_S
    while job_id not in await Leases(db).reap():
        assert time.monotonic() < deadline_s, "the zombie's lease never ended"
        time.sleep(0.01)
    leased = await Leases(db).claim(job_id, "successor", 600)
    assert leased is not None
    return leased.epoch


@pytest.mark.parametrize(
    "repeats",
    [pytest.param(3, marks=pytest.mark.e2e), pytest.param(100, marks=pytest.mark.chaos)],
)
async def test_a_worker_that_slept_through_its_lease_changes_nothing(
    repeats: int,
    url: str,
    db: Database,
    zombie: subprocess.Popen[str],
    found: Callable[[int, str, str], None],
) -> None:
    chance = random.Random(repeats)
    with closing(Ledger(url)) as ledger:
        for _ in range(repeats):
            job_id = await _queued(db)
            _until(lambda job_id=job_id: len(ledger.job(job_id).steps) > 2)
            time.sleep(chance.uniform(0, 0.02))
            _put_to_sleep(zombie, url)
            epoch = await _taken_over(db, job_id)
            before = ledger.job(job_id)
            zombie.send_signal(signal.SIGCONT)
            assert zombie.stdout is not None
            assert zombie.stdout.readline() == f"lost {job_id}\n"
            assert ledger.job(job_id) == before
            assert before.epoch == epoch
    found(repeats, "0 writes accepted", f"0 writes accepted ({url.partition('+')[0]})")
