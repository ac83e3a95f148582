"""Exports: ordered, made once, kept, on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    Conflict,
    NotFound,
    QuotaExceeded,
)
from scheduler.domain.work_status import WorkStatus
from scheduler.store.adapter_orders import Orders
from scheduler.store.leased_work import MAX_TRIES
from tests.integration.adapter_store.conftest import claimed, expire_orders

if TYPE_CHECKING:
    from tests.integration.adapter_store.conftest import World


async def test_one_is_ordered_made_and_kept(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)

    ordered = await mine.export(adapter.id, 1)
    again = await mine.export(adapter.id, 1)
    names = await orders.hint(60)
    work = await orders.begin(names[0])
    assert work is not None
    second = await orders.begin(names[0])
    assert await orders.renew(work)
    assert await orders.succeed_export(work, {"model.safetensors": 5})

    assert ordered == again
    assert ordered.status is WorkStatus.QUEUED
    assert names == [f"{adapter.id}@1"]
    assert await orders.hint(60) == []
    assert second is None
    assert (work.base_model, work.adapter_id, work.version) == ("m", adapter.id, 1)
    made = await mine.finished_export(adapter.id, 1)
    assert (made.uri, made.files) == (work.target_uri, {"model.safetensors": 5})
    assert await mine.export(adapter.id, 1) == made


async def test_a_late_process_writes_nothing(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    name = f"{adapter.id}@1"
    await mine.export(adapter.id, 1)
    late = await orders.begin(name)
    assert late is not None
    await expire_orders(world.db)
    work = await orders.begin(name)
    assert work is not None

    assert not await orders.renew(late)
    assert not await orders.succeed_export(late, {})
    assert not await orders.fail(late, "late")
    assert late.target_uri != work.target_uri
    assert await orders.succeed_export(work, {"a": 1})


async def test_a_dead_process_is_replaced_until_it_is_given_up(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    await mine.export(adapter.id, 1)
    for _ in range(MAX_TRIES):
        (name,) = await orders.hint(0)
        assert await orders.begin(name) is not None
        await expire_orders(world.db)

    (name,) = await orders.hint(0)
    assert await orders.begin(name) is None

    with pytest.raises(Conflict, match="failed"):
        await mine.finished_export(adapter.id, 1)
    assert (await mine.export(adapter.id, 1)).status is WorkStatus.QUEUED


async def test_an_abandoned_one_is_free_and_hinted_at_once(world: World) -> None:
    adapter = await world.imported()
    orders = Orders(world.db)
    await orders.for_tenant(world.owner.id).export(adapter.id, 1)
    for _ in range(MAX_TRIES + 2):
        (name,) = await orders.hint(60)
        work = await orders.begin(name)
        assert work is not None
        await orders.abandon(work)


async def test_others_neither_order_nor_see_it(world: World) -> None:
    adapter = await world.imported()
    await world.mine.share(adapter.id, world.borrower.id)
    await Orders(world.db).for_tenant(world.owner.id).export(adapter.id, 1)

    for other in (world.borrower, world.stranger):
        orders = Orders(world.db).for_tenant(other.id)
        for call in (orders.export, orders.exported, orders.finished_export):
            with pytest.raises(NotFound):
                await call(adapter.id, 1)


async def test_they_are_limited_and_go_with_the_adapter(world: World) -> None:
    adapter = await world.imported(3)
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    await mine.export(adapter.id, 1, max_kept=2)
    await mine.export(adapter.id, 2, max_kept=2)
    with pytest.raises(QuotaExceeded):
        await mine.export(adapter.id, 3, max_kept=2)
    await mine.delete(await mine.exported(adapter.id, 2))
    await mine.export(adapter.id, 3, max_kept=2)
    work = await orders.begin(f"{adapter.id}@1")
    assert work is not None

    await world.mine.delete(adapter.id)

    assert not await orders.succeed_export(work, {})
    assert await orders.hint(0) == []


async def test_one_that_failed_is_not_kept(world: World) -> None:
    adapter = await world.imported(2)
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    failing = await mine.export(adapter.id, 1, max_kept=1)
    await orders.fail(await claimed(orders, failing.id), "No room.")

    assert await mine.export(adapter.id, 2, max_kept=1)
    with pytest.raises(QuotaExceeded):
        await mine.export(adapter.id, 1, max_kept=1)


async def test_deleting_one_tells_what_was_made_since_it_was_seen(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    seen = await mine.export(adapter.id, 1)
    work = await claimed(orders, seen.id)
    await orders.succeed_export(work, {"model.safetensors": 5})

    assert await mine.delete(seen) == work.target_uri
    assert await mine.delete(seen) is None
