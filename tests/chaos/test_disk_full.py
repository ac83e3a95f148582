"""An engine can write no file of any size, as on a full scratch disk; then it can again."""

from __future__ import annotations

import resource
from contextlib import closing
from typing import TYPE_CHECKING

import psutil
import pytest

from tests.chaos.ledger import Ledger
from tests.e2e.load import answer
from tests.e2e.service import descendants, finished, start, start_job, steps, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENGINE = "workers.engine_child"
FULL_BYTES = 2**14  # less than an adapter, more than the service's own log


def _limit_files(pid: int, size_bytes: int) -> None:
    for child, command in descendants(pid):
        if ENGINE in command:
            psutil.Process(child).rlimit(psutil.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


@pytest.mark.parametrize(
    "repeats", [pytest.param(1, marks=pytest.mark.e2e), pytest.param(5, marks=pytest.mark.chaos)]
)
def test_a_full_disk_ends_the_job_with_a_reason_and_nothing_else(
    repeats: int, tmp_path: Path, found: Callable[[int, str, str], None]
) -> None:
    service = start(tmp_path / "data")
    client = service.tenant("full")
    with closing(Ledger.of_folder(service.data)) as ledger:
        for _ in range(repeats):
            job = start_job(client, examples=100, epochs=20, batch=1, checkpoint_every_steps=10)
            until(lambda job=job: len(ledger.job(job.id).checkpoint_steps) > 0)
            _limit_files(service.process.pid, FULL_BYTES)
            failed = finished(client, job)
            saved = ledger.job(job.id).checkpoint_steps
            answer(client)

            _limit_files(service.process.pid, resource.RLIM_INFINITY)
            assert failed.status == "failed"
            assert failed.error is not None
            assert failed.error.code == "checkpoint_failed"
            names = [f"{job.id}/{path.name}" for path in (tmp_path / "data").rglob(".tmp-*")]
            assert names == []
            assert len(list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=100))) == len(
                saved
            )
            assert finished(client, start_job(client)).status == "succeeded"
            assert steps(client, job)
    assert service.stop() == 0
    assert "process_died" not in service.log
    found(repeats, "job fails: checkpoint_failed; serving goes on", "as expected")
