"""Orders as values, read from rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scheduler.domain.adapter_order import OrderKind
from scheduler.domain.work_status import WorkStatus

if TYPE_CHECKING:
    from sqlalchemy import Row

    from scheduler.store.leased_work import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order.

    Attributes:
        adapter_id: whose version it reads, or, for a merge, whose next version it makes.
        version: the version that it reads; None for a merge, whose options name several.
        uri: key of the exported model's folder, once it has succeeded.
        files: name -> bytes of the exported model's files.
        result_version: the version of `adapter_id` that was made.
        promoted: whether that became live; None where it was not to.
    """

    id: str
    kind: OrderKind
    status: WorkStatus
    adapter_id: str
    version: int | None
    uri: str | None
    files: dict[str, int]
    result_version: int | None
    promoted: bool | None
    error_message: str | None
    created_at: int
    finished_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderWork:
    """What the task needs.

    Attributes:
        claim: the fence of all it writes.
        options: as the tenant gave them; a model of domain/adapter_order.py by kind.
        max_total_bytes: the tenant may hold so much once a version has been made.
        live_before: the adapter's live version when it was ordered.
        target_uri: where what is made goes; no other try writes there.
    """

    claim: Claim
    tenant_id: str
    kind: OrderKind
    adapter_id: str
    version: int | None
    base_model: str
    options: dict[str, Any]
    max_total_bytes: int | None
    live_before: int | None
    target_uri: str


def order_of(row: Row[Any]) -> Order:
    """The order of a row."""
    return Order(
        id=row.id,
        kind=OrderKind(row.kind),
        status=WorkStatus(row.status),
        adapter_id=row.adapter_id,
        version=row.version,
        uri=row.uri,
        files=row.files or {},
        result_version=row.result_version,
        promoted=row.promoted,
        error_message=row.error_message,
        created_at=int(row.created_at),
        finished_at=None if row.finished_at is None else int(row.finished_at),
    )
