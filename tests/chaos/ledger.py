"""What the database says about jobs, read beside the service, whichever database it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import NullPool, create_engine, func, make_url, select

from scheduler.domain.job import JobStatus, is_final
from scheduler.store.tables import (
    adapter_versions,
    adapters,
    checkpoints,
    job_events,
    jobs,
    metrics,
    outbox,
)

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from sqlalchemy import Select, Table


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What was accepted about one job.

    Attributes:
        epoch: leases that were ever taken, its check's included.
        owner: the worker that holds it.
        num_checks: times that the check of its files was begun.
        num_events: lines of its log.
        steps: optimizer steps in order, each with the times it brought another loss.
        checkpoint_steps: of its checkpoints, in order.
        num_versions: of its adapter.
    """

    status: str
    epoch: int
    owner: str | None
    num_checks: int
    num_events: int
    steps: tuple[tuple[int, int], ...]
    checkpoint_steps: tuple[int, ...]
    num_versions: int


class Ledger:
    """Reads of one database.

    Args:
        url: as the service has it; SQLite's and psycopg's drivers are replaced by blocking ones.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        driver = "sqlite" if parsed.get_backend_name() == "sqlite" else parsed.drivername
        self._engine = create_engine(parsed.set(drivername=driver), poolclass=NullPool)

    @classmethod
    def of_folder(cls, data: Path) -> Ledger:
        """The database in an embedded service's folder."""
        return cls(f"sqlite:///{data / 'tandem.db'}")

    def job(self, job_id: str) -> JobRecord:
        """Everything about a job."""
        job = jobs.c
        ((status, epoch, owner, num_checks, adapter_id),) = self._rows(
            select(job.status, job.epoch, job.lease_owner, job.num_checks, job.adapter_id).where(
                job.id == job_id
            )
        )
        steps = select(metrics.c.step, metrics.c.num_mismatches).where(metrics.c.job_id == job_id)
        saved = select(checkpoints.c.step).where(checkpoints.c.job_id == job_id)
        versions = select(adapter_versions.c.version).where(
            adapter_versions.c.adapter_id == adapter_id
        )
        events = select(job_events.c.id).where(job_events.c.job_id == job_id)
        return JobRecord(
            status=str(status),
            epoch=int(str(epoch)),
            owner=owner,
            num_checks=int(str(num_checks)),
            num_events=len(self._rows(events)),
            steps=tuple(sorted(self._rows(steps))),
            checkpoint_steps=tuple(sorted(int(str(step)) for (step,) in self._rows(saved))),
            num_versions=len(self._rows(versions)),
        )

    def statuses(self, job_ids: Collection[str]) -> Counter[str]:
        """How many of these jobs are in which state."""
        query = select(jobs.c.status).where(jobs.c.id.in_(job_ids))
        return Counter(str(status) for (status,) in self._rows(query))

    def are_over(self, job_ids: Collection[str]) -> bool:
        """Whether all of these jobs have reached a final state."""
        return all(is_final(JobStatus(status)) for status in self.statuses(job_ids))

    def accepted(self, job_id: str, epoch: int) -> list[list[object]]:
        """Steps, and steps of checkpoints, that were written under one lease of a job."""
        queries = (
            select(table.c.step).where(table.c.job_id == job_id, table.c.epoch == epoch)
            for table in (metrics, checkpoints)
        )
        return [sorted(step for (step,) in self._rows(query)) for query in queries]

    def work(self, table: Table, work_id: str) -> tuple[object, object]:
        """Status of an order or an evaluation, and how often it was taken."""
        query = select(table.c.status, table.c.num_tries).where(table.c.id == work_id)
        ((status, num_tries),) = self._rows(query)
        return status, num_tries

    def num_rows(self, table: Table, **values: object) -> int:
        """How many rows of a table have these values."""
        wanted = (table.c[name] == value for name, value in values.items())
        query = select(func.count()).select_from(table).where(*wanted)
        ((count,),) = self._rows(query)
        return int(str(count))

    @property
    def num_unsent(self) -> int:
        """Rows of the outbox that were not sent yet."""
        return self.num_rows(outbox, sent_at=None)

    def digest(self, job_id: str) -> object:
        """Digest of the adapter that a job ended with."""
        query = (
            select(adapter_versions.c.digest)
            .join(adapters, adapters.c.id == adapter_versions.c.adapter_id)
            .where(
                adapters.c.job_id == job_id, adapter_versions.c.version == adapters.c.final_version
            )
        )
        ((digest,),) = self._rows(query)
        return digest

    def close(self) -> None:
        """Close its connections."""
        self._engine.dispose()

    def _rows(self, query: Select[tuple[object, ...]]) -> list[tuple[object, ...]]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]
