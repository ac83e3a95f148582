"""Processes of a running job are killed; the job must end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import pytest

from tests.chaos.ledger import Ledger
from tests.e2e.service import RunningService, descendants, finished, start, start_job, steps, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from openai import OpenAI
    from openai.types.fine_tuning import FineTuningJob

VICTIMS = ("workers.engine_child", "-m workers ")  # an engine, and the worker above it
NUM_ROUNDS = 13
PAUSE_S = 60.0  # the supervisor gives up after three deaths within so much
UNBROKEN_EPOCH = 2  # one for the check of its files, one for its training
LAST_STEP = 200
KILL_STEPS = range(20, 160, 35)  # one kill in each 35 steps, so that checkpoints lie between


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    quick = {"lease_s": "5", "renew_every_s": "1", "reap_every_s": "1"}
    running = start(tmp_path_factory.mktemp("chaos"), **quick)
    yield running
    running.stop()


def _start(client: OpenAI) -> FineTuningJob:
    return start_job(
        client, examples=LAST_STEP // 2, epochs=2, batch=1, checkpoint_every_steps=10, seed=7
    )


def _kill(service: RunningService, victim: str) -> None:
    children = descendants(service.process.pid)
    pid = next(pid for pid, command in children if victim in command)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}"))


def _run_with_kills(service: RunningService, client: OpenAI, chance: random.Random) -> object:
    """Run the job under kills at random steps; the digest of its adapter."""
    job = _start(client)
    for number, first in enumerate(KILL_STEPS):
        step = first + chance.randrange(20)
        until(lambda step=step: (steps(client, job) or [0])[-1] >= step)
        time.sleep(chance.uniform(0, 0.05))  # anywhere within a step, or in its checkpoint
        _kill(service, VICTIMS[number % len(VICTIMS)])
    assert finished(client, job).status == "succeeded"
    with closing(Ledger.of_folder(service.data)) as ledger:
        record = ledger.job(job.id)
        assert record.steps == tuple((step, 0) for step in range(1, LAST_STEP + 1))
        assert record.epoch >= UNBROKEN_EPOCH + len(KILL_STEPS)  # no kill came after the end
        return ledger.digest(job.id)


@pytest.mark.parametrize(
    "num_rounds",
    [pytest.param(1, marks=pytest.mark.e2e), pytest.param(NUM_ROUNDS, marks=pytest.mark.chaos)],
)
def test_a_job_whose_processes_are_killed_ends_as_the_unbroken_one(
    num_rounds: int, service: RunningService, found: Callable[[int, str, str], None]
) -> None:
    client = service.tenant(f"killed-{num_rounds}")
    unbroken = finished(client, _start(client))
    assert unbroken.status == "succeeded"
    with closing(Ledger.of_folder(service.data)) as ledger:
        expected = ledger.digest(unbroken.id)

    for seed in range(num_rounds):
        time.sleep(PAUSE_S if seed else 0)
        assert _run_with_kills(service, client, random.Random(seed)) == expected, f"seed {seed}"
    found(num_rounds * len(KILL_STEPS), "the unbroken adapter, every step once", "as expected")
