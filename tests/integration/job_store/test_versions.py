"""Checkpoints and versions: their names, who may use them, and what deletes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    Conflict,
    ModelNotFound,
    NotFound,
)
from scheduler.domain.job import JobStatus
from scheduler.store.adapters import Adapters
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_checkpoints_are_listed_newest_first_with_callable_names(world: World) -> None:
    leased = await world.running()
    for step in (10, 20, 30):
        await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(step))

    page = await world.jobs.checkpoints(leased.job_id, limit=2)

    assert [checkpoint.step for checkpoint in page] == [30, 20]
    assert page.has_more
    names = Adapters(world.db).for_tenant(world.tenant.id)
    resolved = await names.resolve(page.items[1].model_name)
    assert (resolved.base_model, resolved.ref.version, resolved.ref.digest) == ("m", 2, "d20")


async def test_pruning_keeps_the_newest_states_and_all_adapters(world: World) -> None:
    leased = await world.running()
    for step in (10, 20, 30, 40):
        await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(step))

    stale = await world.leases.prune_checkpoints(leased.job_id, leased.epoch, keep=2)

    assert stale == ["checkpoints/20", "checkpoints/10"]
    assert await world.leases.prune_checkpoints(leased.job_id, leased.epoch, keep=2) == []
    names = Adapters(world.db).for_tenant(world.tenant.id)
    assert (await names.resolve(f"{leased.model_name}:ckpt-step-10")).ref.version == 1


async def test_the_plain_name_answers_only_after_success(world: World) -> None:
    leased = await world.running()
    names = Adapters(world.db).for_tenant(world.tenant.id)
    live = f"{leased.model_name}:live"
    with pytest.raises(ModelNotFound):
        await names.resolve(live)
    first = await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(10))
    assert (await names.resolve(live)).ref == first
    with pytest.raises(ModelNotFound):
        await names.resolve(leased.model_name)

    final = await world.leases.finish(leased.job_id, leased.epoch, commit(20, uri=None))

    assert final.version == 2
    assert (await names.resolve(leased.model_name)).ref == final
    assert (await names.resolve(live)).ref == final
    assert (await names.resolve(f"{leased.model_name}:ckpt-step-20")).ref == final
    job = await world.jobs.get(leased.job_id)
    assert job.fine_tuned_model == leased.model_name
    assert (job.status, job.trained_tokens) == (JobStatus.SUCCEEDED, 200)


async def test_finishing_at_a_committed_step_publishes_the_newer_version(world: World) -> None:
    leased = await world.running()
    await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(20))

    final = await world.leases.finish(
        leased.job_id, leased.epoch, commit(20, adapter_digest="better")
    )

    names = Adapters(world.db).for_tenant(world.tenant.id)
    assert (await names.resolve(f"{leased.model_name}:ckpt-step-20")).ref == final
    assert len(await world.jobs.checkpoints(leased.job_id)) == 1


async def test_a_foreign_and_an_unknown_name_get_the_same_answer(world: World) -> None:
    leased = await world.running()
    await world.leases.finish(leased.job_id, leased.epoch, commit(5))
    stranger = Adapters(world.db).for_tenant(world.rival.id)

    for suffix in ("", ":live", ":ckpt-step-5"):
        with pytest.raises(ModelNotFound) as foreign:
            await stranger.resolve(leased.model_name + suffix)
        with pytest.raises(ModelNotFound) as unknown:
            await stranger.resolve("ft:none" + suffix)
        expected = unknown.value.message.replace("ft:none", leased.model_name)
        assert foreign.value.message == expected
    with pytest.raises(NotFound):
        await stranger.get(leased.adapter_id)
    with pytest.raises(NotFound):
        await stranger.delete(leased.adapter_id)
    assert len(await stranger.list()) == 0


async def test_an_adapter_is_deleted_with_all_its_names(world: World) -> None:
    leased = await world.running()
    await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(5))
    names = Adapters(world.db).for_tenant(world.tenant.id)
    with pytest.raises(Conflict):
        await names.delete(leased.adapter_id)
    await world.leases.finish(leased.job_id, leased.epoch, commit(9))
    (adapter,) = await names.list()
    assert adapter == await names.get(leased.adapter_id)
    assert [version.step for version in adapter.versions] == [5, 9]

    await names.delete(leased.adapter_id)

    for name in ("", ":live", ":ckpt-step-5", ":ckpt-step-9"):
        with pytest.raises(ModelNotFound):
            await names.resolve(leased.model_name + name)
    with pytest.raises(NotFound):
        await names.delete(leased.adapter_id)
    assert len(await names.list()) == 0


async def test_a_checkpoint_that_is_committed_again_is_no_second_version(world: World) -> None:
    leased = await world.running()
    first = await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(10))
    events = await world.jobs.events(leased.job_id)

    again = await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(10))

    assert again == first
    assert await world.jobs.events(leased.job_id) == events
    assert (
        await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(20))
    ).version == 2
