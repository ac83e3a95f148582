"""Carry out an order: from queued to succeeded, or to failed with the reason."""

from __future__ import annotations

import asyncio
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from scheduler.domain.adapter import MANIFEST_FILE, AdapterManifest
from scheduler.domain.adapter_order import (
    VALIDATION_TOKENS,
    Compression,
    Merging,
    OrderFolder,
    OrderKind,
)
from scheduler.domain.errors import DomainError, LostLease, ModelNotFound
from scheduler.store.adapter_imports import StoredVersion
from scheduler.store.adapter_orders import ORDER_LEASE_S, Orders, OrderWork
from scheduler.store.adapters import Adapters
from scheduler.store.files import Files
from scheduler.store.kept_lease import kept_lease
from scheduler.tasks.programs import Program

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from scheduler.tasks.context import TaskContext

    Carry: TypeAlias = Callable[[OrderWork, OrderFolder, TaskContext], Awaitable[bool]]


async def carry_out_order(order_id: str, context: TaskContext) -> None:
    """Make what was ordered and record it. Repeating it is harmless."""
    orders = Orders(context.db)
    work = await orders.begin(order_id)
    if work is None:
        return
    kept = False
    try:
        with tempfile.TemporaryDirectory(prefix="tandem-order-") as scratch:
            async with kept_lease(partial(orders.renew, work), ORDER_LEASE_S):
                kept = await _CARRY[work.kind](work, OrderFolder(Path(scratch)), context)
    except DomainError as error:
        await orders.fail(work, error.message)
    except FileNotFoundError:
        await orders.fail(work, "The files that it needs are gone.")
    except LostLease:
        return
    except asyncio.CancelledError:
        await orders.abandon(work)
        raise
    finally:
        if not kept:
            await context.objects.delete(work.target_uri)


async def _export(work: OrderWork, folder: OrderFolder, context: TaskContext) -> bool:
    assert work.version is not None
    await _fetch(work, [(work.adapter_id, work.version)], folder, context)
    options = {"base": _base(work, context), "adapter": folder.source(0), "out": folder.out}
    await context.run(Program.MERGE_EXPORT, options)
    await context.objects.put_dir(folder.out, work.target_uri)
    files = {path.name: path.stat().st_size for path in sorted(folder.out.iterdir())}
    return await Orders(context.db).succeed_export(work, files)


async def _compress(work: OrderWork, folder: OrderFolder, context: TaskContext) -> bool:
    assert work.version is not None
    compression = Compression.model_validate(work.options)
    await _fetch(work, [(work.adapter_id, work.version)], folder, context)
    await _encode(work, compression.validation_file, folder, context)
    stored = await _make(Program.COMPRESS, work, folder, context)
    return await Orders(context.db).succeed_version(
        work, stored, name=None, promote=compression.promote
    )


async def _merge(work: OrderWork, folder: OrderFolder, context: TaskContext) -> bool:
    merging = Merging.model_validate(work.options)
    sources = [(source.adapter_id, source.version) for source in merging.sources]
    await _fetch(work, sources, folder, context)
    await _encode(work, merging.validation_file, folder, context)
    stored = await _make(Program.MERGE_ADAPTERS, work, folder, context)
    return await Orders(context.db).succeed_version(work, stored, name=merging.name, promote=False)


_CARRY: dict[OrderKind, Carry] = {
    OrderKind.EXPORT: _export,
    OrderKind.COMPRESS: _compress,
    OrderKind.MERGE: _merge,
}


def _base(work: OrderWork, context: TaskContext) -> Path:
    base = context.model_dirs.get(work.base_model)
    if base is None:
        raise ModelNotFound(f"The base model {work.base_model!r} is not served any more.")
    return base


async def _fetch(
    work: OrderWork, sources: Sequence[tuple[str, int]], folder: OrderFolder, context: TaskContext
) -> None:
    """Bring the sources here; the tenant must still own each.

    Raises:
        NotFound: a version is not there any more.
        PermissionDenied: it was never the tenant's own.
        FileNotFoundError: its files are gone.
    """
    adapters = Adapters(context.db).for_tenant(work.tenant_id)
    for index, (adapter_id, version) in enumerate(sources):
        await adapters.get_own(adapter_id)
        source = await adapters.version(adapter_id, version)
        await context.objects.get_dir(source.uri, folder.source(index))


async def _encode(
    work: OrderWork, file_id: str | None, folder: OrderFolder, context: TaskContext
) -> None:
    """Tokenise the start of the validation file, if there is one, as those of jobs are."""
    if file_id is None:
        return
    file = await Files(context.db).for_tenant(work.tenant_id).get(file_id)
    rows = folder.root / "valid.jsonl"
    await context.objects.get_file(file.object_key, rows)
    await context.encode(_base(work, context), rows, folder.valid, VALIDATION_TOKENS)


async def _make(
    program: Program, work: OrderWork, folder: OrderFolder, context: TaskContext
) -> StoredVersion:
    """Have a version made and store it; what it was made of stands in its recipe."""
    folder.options.write_text(json.dumps(work.options))
    await context.run(program, {"base": _base(work, context), "folder": folder.root})
    manifest = AdapterManifest.model_validate_json((folder.out / MANIFEST_FILE).read_bytes())
    await context.objects.put_dir(folder.out, work.target_uri)
    return StoredVersion(
        uri=work.target_uri,
        digest=manifest.digest,
        num_bytes=manifest.num_bytes,
        base_digest=manifest.base_digest,
        method=manifest.method,
        metrics=manifest.metrics,
        origin=work.kind.value,
        parent_version=work.version,
        recipe=json.loads(folder.recipe.read_bytes()),
    )
