"""What the database says about jobs, read beside the service, whichever database it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, make_url, select

from scheduler.store.tables import adapter_versions, adapters, checkpoints, jobs, metrics

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Select


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What was accepted about one job.

    Attributes:
        epoch: leases that were ever taken, its check's included.
        steps: optimizer steps in order, each with the times it brought another loss.
        checkpoint_steps: of its checkpoints, in order.
    """

    status: str
    epoch: int
    steps: tuple[tuple[int, int], ...]
    checkpoint_steps: tuple[int, ...]


class Ledger:
    """Reads of one database.

    Args:
        url: as the service has it; SQLite's and psycopg's drivers are replaced by blocking ones.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        driver = "sqlite" if parsed.get_backend_name() == "sqlite" else parsed.drivername
        self._engine = create_engine(parsed.set(drivername=driver))

    @classmethod
    def of_folder(cls, data: Path) -> Ledger:
        """The database in an embedded service's folder."""
        return cls(f"sqlite:///{data / 'tandem.db'}")

    def job(self, job_id: str) -> JobRecord:
        """Everything about a job."""
        ((status, epoch),) = self._rows(
            select(jobs.c.status, jobs.c.epoch).where(jobs.c.id == job_id)
        )
        steps = select(metrics.c.step, metrics.c.num_mismatches).where(metrics.c.job_id == job_id)
        saved = select(checkpoints.c.step).where(checkpoints.c.job_id == job_id)
        return JobRecord(
            str(status),
            int(str(epoch)),
            tuple(sorted(self._rows(steps))),  # type: ignore[arg-type]
            tuple(sorted(int(str(step)) for (step,) in self._rows(saved))),
        )

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
