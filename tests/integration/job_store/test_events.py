"""Reports of training become events, once each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from scheduler.domain.errors import (
    InvalidInput,
)
from scheduler.store.tables import metrics
from tests.integration.store_kit import progress

if TYPE_CHECKING:
    from tests.integration.job_store.conftest import World


async def test_a_step_becomes_a_metrics_event(world: World) -> None:
    leased = await world.running()
    report = progress(leased.job_id, leased.epoch, 2, valid_loss=0.7)

    await world.leases.record_progress(report)

    event = (await world.jobs.events(leased.job_id)).items[0]
    assert event.type == "metrics"
    assert event.data == report.model_dump(exclude={"type", "job_id", "epoch"}, exclude_none=True)
    job = await world.jobs.get(leased.job_id)
    assert job.trained_tokens == 20
    assert 55 <= job.estimated_finish - event.created_at <= 65


async def test_a_repeated_step_leaves_one_event(world: World) -> None:
    leased = await world.running()
    steps = [progress(leased.job_id, leased.epoch, step) for step in (1, 2, 3)]

    await world.leases.record_progress(*steps)
    await world.leases.record_progress(*steps[1:])

    events = await world.jobs.events_since(leased.job_id)
    assert [event.data["step"] for event in events if event.data] == [1, 2, 3]
    assert not [event for event in events if event.level == "warn"]


@pytest.mark.parametrize(
    ("deterministic", "loss", "warns"),
    [(False, 0.505, False), (False, 0.6, True), (True, 0.5, False), (True, 0.5000001, True)],
)
async def test_a_repeated_step_with_another_loss_is_reported(
    world: World, deterministic: bool, loss: float, warns: bool
) -> None:
    leased = await world.running(deterministic=deterministic)
    await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2, train_loss=0.5))

    await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2, train_loss=loss))

    events = await world.jobs.events_since(leased.job_id)
    assert any(event.level == "warn" for event in events) == warns
    async with world.db.read() as conn:
        assert await conn.scalar(select(metrics.c.num_mismatches)) == int(warns)


async def test_a_validation_pass_after_its_step_is_an_event_of_its_own(world: World) -> None:
    leased = await world.running()
    await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2))

    await world.leases.record_progress(progress(leased.job_id, leased.epoch, 2, valid_loss=0.9))

    event = (await world.jobs.events(leased.job_id)).items[0]
    assert event.data["valid_loss"] == 0.9


async def test_events_page_backwards_and_follow_forwards(world: World) -> None:
    leased = await world.running()
    steps = [progress(leased.job_id, leased.epoch, step) for step in range(1, 8)]
    await world.leases.record_progress(*steps)
    everything = await world.jobs.events_since(leased.job_id)

    page = await world.jobs.events(leased.job_id, limit=4)
    rest = await world.jobs.events(leased.job_id, after=page.items[-1].id, limit=100)

    assert page.has_more
    assert page.items + rest.items == everything[::-1]
    since = await world.jobs.events_since(leased.job_id, since=everything[3].id)
    assert since == everything[4:]
    with pytest.raises(InvalidInput):
        await world.jobs.events(leased.job_id, after="ft-event-none")


async def test_reports_of_two_leases_in_one_call_are_a_mistake(world: World) -> None:
    leased = await world.running()

    with pytest.raises(ValueError, match="one lease"):
        await world.leases.record_progress(
            progress(leased.job_id, leased.epoch, 1), progress(leased.job_id, 99, 2)
        )
