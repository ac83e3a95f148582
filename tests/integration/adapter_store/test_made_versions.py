"""Versions that orders make from others, on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from scheduler.domain.adapter_order import Compression, MergeSource, Merging
from scheduler.domain.errors import (
    Conflict,
    NotFound,
    QuotaExceeded,
)
from scheduler.domain.work_status import WorkStatus
from scheduler.store.adapter_imports import StoredVersion
from scheduler.store.adapter_orders import Orders, OrderWork
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.leases import Leases
from tests.integration.adapter_store.conftest import claimed, expire_orders
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from tests.integration.adapter_store.conftest import World


async def test_a_compression_becomes_a_version_with_its_recipe(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)

    ordered = await mine.compress(adapter.id, 1, Compression(config={"density": 0.1}))
    work = await claimed(orders, ordered.id)
    assert await orders.succeed_version(work, made(work), name=None, promote=False)

    over = await mine.get(ordered.id)
    assert (over.status, over.result_version) == (WorkStatus.SUCCEEDED, 2)
    assert Compression.model_validate(work.options).config == {"density": 0.1}
    version = await world.mine.version(adapter.id, 2)
    assert (version.origin, version.parent_version) == ("compress", 1)
    assert version.recipe == {"codec": "compeft"}
    for mark in ("", ":live"):  # what an order made answers once it is promoted, not before
        assert await world.number_of(adapter.model_name + mark) == 1
    await world.mine.promote(adapter.id, 2)
    assert await world.number_of(f"{adapter.model_name}:live") == 2


async def test_orders_of_one_instant_are_paged_without_loss(world: World) -> None:
    adapter = await world.imported()
    mine = Orders(world.db).for_tenant(world.owner.id)
    made = [(await mine.compress(adapter.id, 1, Compression())).id for _ in range(3)]
    async with world.db.begin() as conn:
        await conn.execute(text("UPDATE adapter_orders SET created_at = 1.1"))

    listed: list[str] = []
    while len(page := await mine.list(after=listed[-1] if listed else None, limit=1)) > 0:
        listed += [order.id for order in page]

    assert listed == sorted(made, reverse=True)


@pytest.mark.parametrize(("promoted", "live"), [(None, 4), (1, 4), (3, 3)])
async def test_it_is_promoted_unless_another_was_meanwhile(
    world: World, promoted: int | None, live: int
) -> None:
    adapter = await world.imported(3)
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    ordered = await mine.compress(adapter.id, 1, Compression(promote=True))
    work = await claimed(orders, ordered.id)
    if promoted is not None:
        await world.mine.promote(adapter.id, promoted)

    assert await orders.succeed_version(work, made(work), name=None, promote=True)

    assert (await world.mine.get(adapter.id)).live_version == live


@pytest.mark.parametrize(("meanwhile", "promoted"), [(None, True), (1, True), (2, False)])
async def test_what_was_live_when_it_was_ordered_may_give_way_and_nothing_else(
    world: World, meanwhile: int | None, promoted: bool
) -> None:
    adapter = await world.imported(3)
    await world.mine.promote(adapter.id, 3)
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    ordered = await mine.compress(adapter.id, 1, Compression(promote=True))
    if meanwhile is not None:
        await world.mine.promote(adapter.id, meanwhile)
    work = await claimed(orders, ordered.id)

    assert await orders.succeed_version(work, made(work), name=None, promote=True)

    assert (await mine.get(ordered.id)).promoted is promoted
    live = 4 if promoted else meanwhile
    assert (await world.mine.get(adapter.id)).live_version == live


async def test_a_merge_becomes_an_adapter_of_its_own(world: World) -> None:
    adapter = await world.imported(2)
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    sources = [MergeSource(adapter_id=adapter.id, version=n) for n in (1, 2)]
    merging = Merging(sources=tuple(sources), max_rank=64, name="both")

    ordered = await mine.merge("fresh", "m", merging)
    work = await claimed(orders, ordered.id)
    assert await orders.succeed_version(work, made(work), name="both", promote=False)

    new = await world.mine.get("fresh")
    assert (new.job_id, new.base_model, new.published_version) == (None, "m", 1)
    assert await world.number_of(new.model_name) == 1


async def test_all_orders_of_an_adapter_go_with_it(world: World) -> None:
    adapter, other = await world.imported(2), await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    sources = (MergeSource(adapter_id=other.id, version=1),)
    merging = Merging(sources=sources, max_rank=64)
    merged = await mine.merge(adapter.id, "m", merging)
    for number in (1, 2):
        await mine.compress(adapter.id, number, Compression())
    await mine.export(adapter.id, 1, max_kept=1)
    work = await claimed(orders, merged.id)

    await world.mine.delete(adapter.id)

    assert len(await mine.list()) == 0
    assert not await orders.succeed_version(work, made(work), name=None, promote=False)
    assert await mine.export(other.id, 1, max_kept=1)


async def test_a_full_model_is_no_order_of_these(world: World) -> None:
    adapter = await world.imported()
    mine = Orders(world.db).for_tenant(world.owner.id)
    exported = await mine.export(adapter.id, 1)

    with pytest.raises(NotFound):
        await mine.get(exported.id)


async def test_nothing_is_made_of_what_a_job_still_makes(world: World) -> None:
    leased = await world.leased()
    await Leases(world.db).commit_checkpoint(leased.job_id, leased.epoch, commit(5))
    mine = Orders(world.db).for_tenant(world.owner.id)

    with pytest.raises(Conflict, match="still makes versions"):
        await mine.compress(leased.adapter_id, 1, Compression())


async def test_a_late_process_makes_no_version(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    ordered = await mine.compress(adapter.id, 1, Compression())
    late = await claimed(orders, ordered.id)
    await expire_orders(world.db)
    work = await claimed(orders, ordered.id)

    assert not await orders.succeed_version(late, made(late), name=None, promote=True)
    assert await orders.succeed_version(work, made(work), name=None, promote=False)

    assert len((await world.mine.get(adapter.id)).versions) == 2


async def test_what_is_made_counts_against_the_tenants_room(world: World) -> None:
    adapter = await world.imported()
    mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
    held = adapter.versions[0].num_bytes
    ordered = await mine.compress(adapter.id, 1, Compression(), max_total_bytes=held + 6)
    work = await claimed(orders, ordered.id)

    with pytest.raises(QuotaExceeded):
        await orders.succeed_version(work, made(work), name=None, promote=False)

    assert len((await world.mine.get(adapter.id)).versions) == 1


async def test_open_orders_are_limited_and_a_key_repeats_none(world: World) -> None:
    adapter = await world.imported()
    mine = Orders(world.db).for_tenant(world.owner.id)
    key = IdempotencyKey(key="k", body_hash="h")

    first = await mine.compress(adapter.id, 1, Compression(), max_open=1, idempotency=key)
    again = await mine.compress(adapter.id, 1, Compression(), max_open=1, idempotency=key)
    with pytest.raises(QuotaExceeded):
        await mine.compress(adapter.id, 1, Compression(), max_open=1)

    assert again == first
    await mine.delete(first)
    assert await mine.compress(adapter.id, 1, Compression(), max_open=1)


async def test_others_neither_compress_nor_see_it(world: World) -> None:
    adapter = await world.imported()
    await world.mine.share(adapter.id, world.borrower.id)
    mine = await Orders(world.db).for_tenant(world.owner.id).compress(adapter.id, 1, Compression())

    for other in (world.borrower, world.stranger):
        theirs = Orders(world.db).for_tenant(other.id)
        for call in (
            theirs.compress(adapter.id, 1, Compression()),
            theirs.get(mine.id),
        ):
            with pytest.raises(NotFound):
                await call


def made(work: OrderWork) -> StoredVersion:
    """What a task stores."""
    return StoredVersion(
        uri=work.target_uri, digest="made", num_bytes=7, base_digest="b", method="lora",
        origin=work.kind.value, parent_version=work.version, recipe={"codec": "compeft"},
    )  # fmt: skip
