"""Adapters that one tenant lends another, on every database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    InvalidInput,
    ModelNotFound,
    NotFound,
    PermissionDenied,
)
from scheduler.store.adapters import TenantAdapters
from scheduler.store.leases import Leases
from tests.integration.adapter_store.conftest import version
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.integration.adapter_store.conftest import World


async def test_a_borrower_calls_and_sees_but_learns_no_jobs_and_no_data(world: World) -> None:
    leased = await world.leased()
    await Leases(world.db).finish(leased.job_id, leased.epoch, commit(5))
    await world.mine.share(leased.adapter_id, world.borrower.id)

    (seen,) = await world.theirs.list()
    (named,) = await world.theirs.published()

    assert seen == await world.theirs.get(leased.adapter_id)
    assert (seen.shared_by, seen.job_id, seen.shared_with) == ("acme", None, ())
    assert (seen.versions[0].job_id, seen.versions[0].data_digests) == (None, {})
    assert named.model_name == leased.model_name
    for mark in ("", "@1", ":live", ":ckpt-step-5"):
        assert await world.number_of(leased.model_name + mark, world.theirs) == 1
    (owned,) = await world.mine.list()
    assert (owned.shared_by, owned.shared_with) == (None, (world.borrower.id,))


async def test_only_the_owner_changes_and_a_stranger_finds_nothing(world: World) -> None:
    adapter = await world.imported(2)
    await world.mine.set_tag(adapter.id, "prod", 1)
    await world.mine.share(adapter.id, world.borrower.id)
    before = await world.mine.get(adapter.id)

    calls = _changes(adapter.id, world.stranger.id)
    for call, same_call in zip(calls, _changes("nobody", world.stranger.id), strict=True):
        with pytest.raises(PermissionDenied):
            await call(world.theirs)
        with pytest.raises(NotFound) as foreign:
            await call(world.strange)
        with pytest.raises(NotFound) as unknown:
            await same_call(world.strange)
        assert foreign.value.message.replace(adapter.id, "nobody") == unknown.value.message

    assert await world.mine.get(adapter.id) == before


async def test_unsharing_takes_effect_at_once(world: World) -> None:
    adapter = await world.imported()
    await world.mine.share(adapter.id, world.borrower.id)
    await world.mine.share(adapter.id, world.borrower.id)
    await world.number_of(adapter.model_name, world.theirs)

    await world.mine.unshare(adapter.id, world.borrower.id)

    with pytest.raises(ModelNotFound):
        await world.number_of(adapter.model_name, world.theirs)
    assert len(await world.theirs.list()) == 0
    with pytest.raises(NotFound):
        await world.mine.unshare(adapter.id, world.borrower.id)


async def test_nobody_shares_with_itself_or_with_nobody(world: World) -> None:
    adapter = await world.imported()

    with pytest.raises(InvalidInput):
        await world.mine.share(adapter.id, world.owner.id)
    with pytest.raises(NotFound):
        await world.mine.share(adapter.id, "org-unknown")


def _changes(
    adapter_id: str, borrower_id: str
) -> list[Callable[[TenantAdapters], Awaitable[object]]]:
    return [
        lambda view: view.promote(adapter_id, 2),
        lambda view: view.roll_back(adapter_id),
        lambda view: view.set_tag(adapter_id, "prod", 2),
        lambda view: view.drop_tag(adapter_id, "prod"),
        lambda view: view.set_pinned(adapter_id, True),
        lambda view: view.share(adapter_id, borrower_id),
        lambda view: view.unshare(adapter_id, borrower_id),
        lambda view: view.add_version(adapter_id, version(9)),
        lambda view: view.delete(adapter_id),
        lambda view: view.get_own(adapter_id),
    ]
