"""/v1/adapters: versions made of versions, by compression or merging, and how far that is."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from scheduler.domain.errors import (
    Conflict,
    InvalidInput,
    ModelNotFound,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    UnknownPlugin,
)
from scheduler.store.adapter_imports import new_adapter_id
from scheduler.store.files import TenantFiles
from service.adapter_read import read_order
from service.blame import blaming
from service.deps import AdaptersDep, FilesDep, OrdersDep, ReplaysDep, RosterDep, SettingsDep
from service.errors import errors
from service.order_request import base_of, draft_compression, draft_merging, find_sources
from service.schemas.adapter import VersionPath
from service.schemas.adapter_order import CompressCreate, MergeCreate, OrderRead
from service.schemas.base import Deleted, ListPage

router = APIRouter(prefix="/v1/adapters", tags=["adapters"])

OrderId = Annotated[str, Path(max_length=64)]


async def _check_file(file_id: str | None, files: TenantFiles) -> None:
    """Refuse a validation file that the tenant has not. Raises NotFound."""
    if file_id is not None:
        with blaming("validation_file", NotFound):
            await files.get(file_id)


@router.post(
    "/{adapter_id}/versions/{version}/compress",
    responses=errors(
        *(NotFound, PermissionDenied, InvalidInput, UnknownPlugin, Conflict),
        *(QuotaExceeded, Overloaded),
    ),
)
async def compress_version(
    adapter_id: str,
    version: VersionPath,
    body: CompressCreate,
    adapters: AdaptersDep,
    orders: OrdersDep,
    files: FilesDep,
    roster: RosterDep,
    settings: SettingsDep,
    replays: ReplaysDep,
) -> OrderRead:
    """Have a further version made that holds this one coded, as small as asked for."""
    key = replays.key_for("compress", adapter_id, version, body.model_dump(mode="json"))
    adapter = await adapters.get_own(adapter_id)
    await _check_file(body.validation_file, files)
    order = await orders.compress(
        adapter_id,
        version,
        draft_compression(body, adapter.base_model, body.validation_file, roster),
        max_open=settings.max_open_orders,
        max_total_bytes=settings.max_imported_bytes,
        idempotency=key,
    )
    return read_order(order)


@router.post(
    "/merges",
    responses=errors(
        *(ModelNotFound, NotFound, PermissionDenied, InvalidInput, UnknownPlugin),
        *(Conflict, QuotaExceeded, Overloaded),
    ),
)
async def merge_adapters(
    body: MergeCreate,
    adapters: AdaptersDep,
    orders: OrdersDep,
    files: FilesDep,
    roster: RosterDep,
    settings: SettingsDep,
    replays: ReplaysDep,
) -> OrderRead:
    """Have a version made of several of your own, as a new adapter or a further version of one."""
    key = replays.key_for("merges", body.model_dump(mode="json"))
    sources = await find_sources(body.sources, adapters)
    merging, base_model = draft_merging(body, sources, roster), base_of(sources)
    if body.adapter_id is not None:
        with blaming("adapter_id", NotFound, PermissionDenied):
            target = await adapters.get_own(body.adapter_id)
        if target.base_model != base_model:
            raise InvalidInput(f"That adapter belongs to {target.base_model}.", param="adapter_id")
    await _check_file(body.validation_file, files)
    order = await orders.merge(
        body.adapter_id or new_adapter_id(),
        base_model,
        merging,
        max_open=settings.max_open_orders,
        max_total_bytes=settings.max_imported_bytes,
        idempotency=key,
    )
    return read_order(order)


@router.get("/orders", responses=errors(InvalidInput))
async def list_orders(
    orders: OrdersDep,
    after: Annotated[
        str | None, Query(max_length=64, description="Last id of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> ListPage[OrderRead]:
    """List compressions and merges, newest first."""
    page = await orders.list(after=after, limit=limit)
    return ListPage.of([read_order(order) for order in page], has_more=page.has_more)


@router.get("/orders/{order_id}", responses=errors(NotFound))
async def retrieve_order(order_id: OrderId, orders: OrdersDep) -> OrderRead:
    """Show how far a compression or a merge is."""
    return read_order(await orders.get(order_id))


@router.delete("/orders/{order_id}", responses=errors(NotFound))
async def delete_order(order_id: OrderId, orders: OrdersDep) -> Deleted:
    """Take an order back, or forget one that is over; a version that was made stays."""
    await orders.delete(await orders.get(order_id))
    return Deleted(id=order_id, object="adapter.order")
