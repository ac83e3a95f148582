"""Merge a version into its base: from queued to succeeded, or to failed with the reason."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.domain.errors import DomainError, ModelNotFound
from scheduler.store.adapter_merges import MERGE_LEASE_S, Merges, MergeWork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from scheduler.tasks.context import TaskContext


async def merge_adapter(name: str, context: TaskContext) -> None:
    """Make the full model and store it. Repeating it is harmless.

    Args:
        name: `ADAPTER@VERSION`.
        context: stores, base models, and the program that merges.
    """
    merges = Merges(context.db)
    work = await merges.begin(name)
    if work is None:
        return
    kept = False
    try:
        async with _renewing(merges, work):
            files = await _merge(work, context)
        kept = await merges.succeed(work, files)
    except DomainError as error:
        await merges.fail(work, error.message)
    except FileNotFoundError:
        await merges.fail(work, "The version's files are gone.")
    except asyncio.CancelledError:
        await merges.abandon(work)
        raise
    finally:
        if not kept:
            await context.objects.delete(work.target_uri)


async def _merge(work: MergeWork, context: TaskContext) -> dict[str, int]:
    base = context.model_dirs.get(work.base_model)
    if base is None:
        raise ModelNotFound(f"The base model {work.base_model!r} is not served any more.")
    with tempfile.TemporaryDirectory(prefix="tandem-merge-") as scratch:
        adapter, out = Path(scratch) / "adapter", Path(scratch) / "model"
        await context.objects.get_dir(work.adapter_uri, adapter)
        await context.merge(base, adapter, out)
        await context.objects.put_dir(out, work.target_uri)
        return {path.name: path.stat().st_size for path in sorted(out.iterdir())}


@asynccontextmanager
async def _renewing(merges: Merges, work: MergeWork) -> AsyncIterator[None]:
    """Keep the lease while a large model takes its time."""

    async def renew() -> None:
        renewed = True
        while renewed:
            await asyncio.sleep(MERGE_LEASE_S / 3)
            renewed = await merges.renew(work)

    renewing = asyncio.create_task(renew())
    try:
        yield
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
