"""Which version answers as the live one, on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    Conflict,
    ModelNotFound,
    NotFound,
)
from scheduler.store.leases import Leases
from tests.integration.adapter_store.conftest import version
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from tests.integration.adapter_store.conftest import World


async def test_a_promotion_moves_the_plain_name_and_live_but_no_version(world: World) -> None:
    adapter = await world.imported(3)
    name = adapter.model_name

    promoted = await world.mine.promote(adapter.id, 2)
    await world.mine.add_version(adapter.id, version(4))

    assert promoted.published_version == 2
    assert await world.number_of(name) == 2
    assert await world.number_of(f"{name}:live") == 2
    assert await world.number_of(f"{name}@4") == 4


async def test_rolling_back_walks_through_all_promotions(world: World) -> None:
    adapter = await world.imported(3)
    for number in (3, 2, 2, 3):  # the repeated one is no step of its own
        await world.mine.promote(adapter.id, number)

    seen = [await world.mine.roll_back(adapter.id) for _ in range(3)]

    assert [a.live_version for a in seen] == [2, 3, None]
    assert await world.number_of(adapter.model_name) == 1
    with pytest.raises(Conflict):
        await world.mine.roll_back(adapter.id)


async def test_a_promotion_after_a_rollback_goes_back_to_what_was_live(world: World) -> None:
    adapter = await world.imported(3)
    await world.mine.promote(adapter.id, 2)
    await world.mine.promote(adapter.id, 3)
    await world.mine.roll_back(adapter.id)
    await world.mine.promote(adapter.id, 1)

    assert (await world.mine.roll_back(adapter.id)).live_version == 2


async def test_a_promoted_checkpoint_of_a_running_job_stays_live_when_the_job_ends(
    world: World,
) -> None:
    leased = await world.leased()
    for step in (5, 9):
        await Leases(world.db).commit_checkpoint(leased.job_id, leased.epoch, commit(step))
    with pytest.raises(ModelNotFound):
        await world.number_of(leased.model_name)
    assert await world.number_of(f"{leased.model_name}:live") == 2

    await world.mine.promote(leased.adapter_id, 1)
    await Leases(world.db).finish(leased.job_id, leased.epoch, commit(12))

    assert await world.number_of(leased.model_name) == 1
    assert (await world.mine.roll_back(leased.adapter_id)).published_version == 3


async def test_an_unknown_version_is_not_promoted(world: World) -> None:
    adapter = await world.imported()

    with pytest.raises(NotFound):
        await world.mine.promote(adapter.id, 2)

    assert await world.mine.get(adapter.id) == adapter
