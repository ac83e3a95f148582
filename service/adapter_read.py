"""Adapters as answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

from scheduler.store.adapter_pointers import OVERTAKEN
from service.schemas.adapter import (
    AdapterDetail,
    AdapterRead,
    AdapterVersionRead,
    ResidencyRead,
)
from service.schemas.adapter_order import OrderRead

if TYPE_CHECKING:
    from scheduler.domain.messages import WorkerInfo
    from scheduler.store.adapter_orders import Order
    from scheduler.store.adapters import Adapter, AdapterVersion
    from service.schemas.adapter import Origin


def read_adapter(adapter: Adapter) -> AdapterRead:
    """An adapter with all its versions."""
    return AdapterRead(
        id=adapter.id,
        created_at=adapter.created_at,
        model=adapter.model_name,
        base_model=adapter.base_model,
        job_id=adapter.job_id,
        final_version=adapter.final_version,
        live_version=adapter.live_version,
        tags=adapter.tags,
        pinned=adapter.is_pinned,
        shared_by=adapter.shared_by,
        shared_with=list(adapter.shared_with),
        versions=[read_version(version) for version in adapter.versions],
    )


def read_detail(adapter: Adapter, workers: list[WorkerInfo]) -> AdapterDetail:
    """An adapter and, for its owner, where it lies."""
    own = adapter.versions if adapter.shared_by is None else ()
    residency = [
        ResidencyRead(worker=worker.worker_id, version=version.version, tier=tier)
        for worker in workers
        for version in own
        if (tier := worker.nearest_tier(version.digest)) is not None
    ]
    return AdapterDetail(**dict(read_adapter(adapter)), residency=residency)


def read_version(version: AdapterVersion) -> AdapterVersionRead:
    """One version."""
    return AdapterVersionRead(
        version=version.version,
        model=version.name,
        step=version.step,
        digest=version.digest,
        bytes=version.num_bytes,
        created_at=version.created_at,
        origin=cast("Origin | None", version.origin),
        base_digest=version.base_digest,
        method=version.method,
        job_id=version.job_id,
        data_digests=version.data_digests,
        metrics=version.metrics,
        parent_version=version.parent_version,
        recipe=version.recipe,
    )


def read_order(order: Order) -> OrderRead:
    """A compression or a merge."""
    return OrderRead(
        id=order.id,
        kind=cast('Literal["compress", "merge"]', order.kind.value),
        status=order.status.value,
        adapter_id=order.adapter_id,
        version=order.version,
        result_version=order.result_version,
        promoted=order.promoted,
        reason=OVERTAKEN if order.promoted is False else None,
        created_at=order.created_at,
        finished_at=order.finished_at,
        error=order.error_message,
    )
