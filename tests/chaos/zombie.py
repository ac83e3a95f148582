"""A worker's writes without the training: leases jobs and reports steps until it loses them.

`python -m tests.chaos.zombie DATABASE_URL LEASE_S` says `lost JOB` for each job that it lost.
"""

from __future__ import annotations

import asyncio
import sys

from sqlalchemy.exc import SQLAlchemyError

from scheduler.domain.errors import LostLease
from scheduler.store.database import Database
from scheduler.store.leases import Leases
from tests.integration.store_kit import commit, progress

LOOK_S = 0.01


async def haunt(url: str, lease_s: float) -> None:
    """Lease whatever is queued, for ever."""
    leases = Leases(Database(url))
    while True:
        for job_id in await leases.claimable(["m"]):
            leased = await leases.claim(job_id, "zombie", lease_s)
            if leased is not None:
                await _write_until_lost(leases, job_id, leased.epoch, lease_s)
                sys.stdout.write(f"lost {job_id}\n")
                sys.stdout.flush()
        await asyncio.sleep(LOOK_S)


async def _write_until_lost(leases: Leases, job_id: str, epoch: int, lease_s: float) -> None:
    step = 0
    while True:
        step += 1
        try:
            await leases.record_progress(progress(job_id, epoch, step))
            await leases.commit_checkpoint(job_id, epoch, commit(step))
            await leases.renew(job_id, epoch, lease_s)
        except LostLease:
            return
        except SQLAlchemyError:  # cut off in the middle of a transaction: again, as a worker does
            continue


if __name__ == "__main__":
    asyncio.run(haunt(sys.argv[1], float(sys.argv[2])))
