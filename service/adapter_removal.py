"""Deleting an adapter, by whichever route it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scheduler.domain.errors import AdapterInUse

if TYPE_CHECKING:
    from scheduler.store.adapters import Adapter, TenantAdapters
    from scheduler.store.objects import ObjectStore
    from service.worker_pool import WorkerPool


async def remove_adapter(
    adapter_id: str, adapters: TenantAdapters, pool: WorkerPool, objects: ObjectStore
) -> Adapter:
    """Remove an adapter with all its versions and artefacts.

    Answers that other gateways are giving are not seen; what an engine has loaded, it finishes.

    Raises:
        NotFound: the tenant has no such adapter.
        PermissionDenied: it is borrowed.
        Conflict: its job still runs.
        AdapterInUse: it is pinned, shared, or answering.
    """
    adapter = await adapters.get(adapter_id)
    num_answering = pool.live.num_answering(adapter_id)
    if adapter.shared_by is None and num_answering:
        raise AdapterInUse(
            f"Adapter {adapter_id} is answering {num_answering} requests; delete it when they are "
            "through."
        )
    removed = await adapters.delete(adapter_id)
    await objects.delete(f"adapters/{adapter_id}")
    return removed
