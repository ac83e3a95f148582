"""What a job has asked for besides training; others do it, and the job does not wait for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scheduler.domain.adapter_order import OrderKind
from scheduler.domain.job import FinetuneSpec
from scheduler.store.job_events import append_event
from scheduler.store.tenant_evaluations import insert_evaluation
from scheduler.store.tenant_orders import insert_order

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from scheduler.domain.adapter import AdapterRef


async def order_aftermath(conn: AsyncConnection, row: Row[Any], ref: AdapterRef) -> None:
    """Order it, in the transaction that ends the job.

    Args:
        conn: the transaction.
        row: the job's row.
        ref: the final version.
    """
    spec = FinetuneSpec.model_validate(row.spec)
    if spec.compress is not None:
        order_id = await insert_order(
            conn,
            tenant_id=row.tenant_id,
            kind=OrderKind.COMPRESS,
            adapter_id=ref.adapter_id,
            version=ref.version,
            base_model=row.base_model,
            options=spec.compress.model_dump(mode="json"),
        )
        await append_event(conn, row.id, f"A compressed version was ordered: {order_id}.")
    if spec.promote_if is not None:
        evaluation_id = await insert_evaluation(
            conn,
            spec.promote_if,
            tenant_id=row.tenant_id,
            adapter_id=ref.adapter_id,
            version=ref.version,
            job_id=row.id,
        )
        message = f"Version {ref.version} becomes live if evaluation {evaluation_id} allows it."
        await append_event(conn, row.id, message)
