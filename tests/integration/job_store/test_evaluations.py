"""Evaluations: who carries one out, what it changes, and what a job's end has to do with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from scheduler.domain.errors import IdempotencyMismatch, ModelNotFound, NotFound, QuotaExceeded
from scheduler.domain.evaluation import (
    ContenderReport,
    EvaluationPlan,
    EvaluationReport,
    GraderChoice,
    PromotionRule,
)
from scheduler.domain.work_status import WorkStatus
from scheduler.store.adapters import Adapters, TenantAdapters
from scheduler.store.evaluations import Evaluation, Evaluations, EvaluationWork, TenantEvaluations
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.leased_work import MAX_TRIES
from scheduler.store.tables import evaluations as evaluations_table
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from scheduler.domain.adapter import AdapterRef
    from scheduler.domain.tenant import Tenant
    from tests.integration.job_store.conftest import World

PLAN = EvaluationPlan(
    file="file-1",
    graders=(GraderChoice(name="loss", type="loss"),),
    max_rows=10,
    max_answer_tokens=8,
)
GATE = PLAN.model_copy(update={"rules": (PromotionRule(grader="loss", comparison="at_most"),)})
REPORT = EvaluationReport(
    num_rows=2, contenders={"candidate": ContenderReport(model="x@1", means={"loss": 0.5})}
)
BAD_REPORT = REPORT.model_copy(update={"reasons": ("loss is 2; it must be at most 1.",)})


async def trained(world: World, **spec: Any) -> AdapterRef:
    """A job of two checkpoints, ended."""
    leased = await world.running(**spec)
    await world.leases.commit_checkpoint(leased.job_id, leased.epoch, commit(1))
    return await world.leases.finish(leased.job_id, leased.epoch, commit(2))


def view(world: World, tenant: Tenant | None = None) -> TenantEvaluations:
    return Evaluations(world.db).for_tenant((tenant or world.tenant).id)


def adapters(world: World) -> TenantAdapters:
    return Adapters(world.db).for_tenant(world.tenant.id)


async def ordered(world: World, plan: EvaluationPlan = PLAN) -> Evaluation:
    """An evaluation of a trained version."""
    ref = await trained(world)
    return await view(world).create(ref.adapter_id, ref.version, plan)


async def claimed(world: World) -> EvaluationWork:
    work = await Evaluations(world.db).claim()
    assert work is not None
    return work


async def expire(world: World) -> None:
    async with world.db.begin() as conn:
        await conn.execute(update(evaluations_table).values(lease_until=1.0))


class TestWhoCarriesItOut:
    async def test_one_gateway_takes_it_and_it_ends_once(self, world: World) -> None:
        made = await ordered(world)
        work = await claimed(world)

        assert await Evaluations(world.db).claim() is None
        assert (await view(world).get(made.id)).status is WorkStatus.RUNNING
        assert await Evaluations(world.db).succeed(work, REPORT, live_before=None)
        assert not await Evaluations(world.db).succeed(work, REPORT, live_before=None)
        ended = await view(world).get(made.id)
        assert (ended.status, ended.report) == (WorkStatus.SUCCEEDED, REPORT)

    async def test_a_tenant_has_one_run_at_a_time_and_holds_up_nobody_else(
        self, world: World
    ) -> None:
        ref = await trained(world)
        first, second = [await view(world).create(ref.adapter_id, 1, PLAN) for _ in range(2)]
        theirs = await view(world, world.rival).create(ref.adapter_id, 1, PLAN)

        taken = [(await claimed(world)).claim.id for _ in range(2)]
        assert taken == [first.id, theirs.id]
        assert await Evaluations(world.db).claim() is None
        await view(world).delete(first.id)
        assert (await claimed(world)).claim.id == second.id

    async def test_whoever_was_served_longest_ago_comes_next_however_much_waits(
        self, world: World
    ) -> None:
        ref = await trained(world)
        mine, theirs = view(world), view(world, world.rival)
        many = [(await mine.create(ref.adapter_id, 1, PLAN)).id for _ in range(3)]
        few = [(await theirs.create(ref.adapter_id, 1, PLAN)).id for _ in range(2)]

        taken = []
        for _ in range(5):
            work = await claimed(world)
            taken.append(work.claim.id)
            await Evaluations(world.db).fail(work, "over")
            await Evaluations(world.db).for_tenant(work.tenant_id).delete(work.claim.id)

        assert taken == [many[0], few[0], many[1], few[1], many[2]]

    async def test_a_gateway_that_lost_its_lease_changes_nothing(self, world: World) -> None:
        made = await ordered(world)
        lost = await claimed(world)
        await expire(world)
        await claimed(world)

        store = Evaluations(world.db)
        assert not await store.renew(lost)
        assert not await store.succeed(lost, REPORT, live_before=None)
        assert not await store.fail(lost, "late")
        await store.abandon(lost)
        assert (await view(world).get(made.id)).status is WorkStatus.RUNNING

    async def test_one_that_kills_its_gateways_is_given_up(self, world: World) -> None:
        made = await ordered(world)
        for _ in range(MAX_TRIES):
            await claimed(world)
            await expire(world)

        assert await Evaluations(world.db).claim() is None
        ended = await view(world).get(made.id)
        assert (ended.status, ended.error_message) == (
            WorkStatus.FAILED,
            "It failed 3 times without a reason.",
        )

    async def test_a_gateway_that_is_asked_to_end_hands_it_back_uncounted(
        self, world: World
    ) -> None:
        await ordered(world)
        for _ in range(MAX_TRIES + 1):
            work = await claimed(world)
            await Evaluations(world.db).abandon(work)

        assert (await claimed(world)).claim.num_tries == 1

    async def test_one_that_is_deleted_is_not_wanted_any_more(self, world: World) -> None:
        made = await ordered(world)
        work = await claimed(world)

        await view(world).delete(made.id)

        assert not await Evaluations(world.db).renew(work)
        with pytest.raises(NotFound):
            await view(world).get(made.id)

    async def test_it_goes_with_its_adapter(self, world: World) -> None:
        made = await ordered(world)

        await adapters(world).delete(made.adapter_id)

        with pytest.raises(NotFound):
            await view(world).get(made.id)


class TestWhoSeesIt:
    async def test_tenants_see_only_their_own(self, world: World) -> None:
        made = await ordered(world)
        theirs = view(world, world.rival)

        assert len(await theirs.list()) == 0
        for act in (theirs.get, theirs.delete):
            with pytest.raises(NotFound):
                await act(made.id)
        assert [one.id for one in await view(world).list()] == [made.id]

    async def test_pages_go_from_the_newest(self, world: World) -> None:
        ref = await trained(world)
        ids = [(await view(world).create(ref.adapter_id, 1, PLAN)).id for _ in range(3)]

        page = await view(world).list(limit=2)
        rest = await view(world).list(limit=2, after=page.items[-1].id)

        assert [one.id for one in page] == [ids[2], ids[1]]
        assert page.has_more
        assert [one.id for one in rest] == [ids[0]]

    async def test_only_so_many_wait_at_once(self, world: World) -> None:
        made = await ordered(world)

        with pytest.raises(QuotaExceeded):
            await view(world).create(made.adapter_id, 1, PLAN, max_open=1)

    async def test_a_repeated_key_creates_nothing_new(self, world: World) -> None:
        ref = await trained(world)
        key = IdempotencyKey(key="k", body_hash="h")

        first = await view(world).create(ref.adapter_id, 1, PLAN, idempotency=key)
        again = await view(world).create(ref.adapter_id, 1, PLAN, idempotency=key, max_open=1)

        assert again == first
        other = IdempotencyKey(key="k", body_hash="other")
        with pytest.raises(IdempotencyMismatch):
            await view(world).create(ref.adapter_id, 1, PLAN, idempotency=other)


class TestPromotion:
    async def test_rules_that_hold_make_the_version_live(self, world: World) -> None:
        made = await ordered(world, GATE)

        await Evaluations(world.db).succeed(await claimed(world), REPORT, live_before=None)

        report = (await view(world).get(made.id)).report
        assert report is not None
        assert report.promoted is True
        assert (await adapters(world).get(made.adapter_id)).live_version == 2

    async def test_a_broken_rule_changes_nothing(self, world: World) -> None:
        made = await ordered(world, GATE)

        await Evaluations(world.db).succeed(await claimed(world), BAD_REPORT, live_before=None)

        report = (await view(world).get(made.id)).report
        assert report is not None
        assert (report.promoted, report.reasons) == (False, BAD_REPORT.reasons)
        assert (await adapters(world).get(made.adapter_id)).live_version is None

    async def test_whoever_promoted_another_version_meanwhile_is_not_overruled(
        self, world: World
    ) -> None:
        made = await ordered(world, GATE)
        work = await claimed(world)
        await adapters(world).promote(made.adapter_id, 1)

        await Evaluations(world.db).succeed(work, REPORT, live_before=None)

        report = (await view(world).get(made.id)).report
        assert report is not None
        assert (report.promoted, len(report.reasons)) == (False, 1)
        assert (await adapters(world).get(made.adapter_id)).live_version == 1

    async def test_without_rules_nothing_becomes_live(self, world: World) -> None:
        made = await ordered(world)

        await Evaluations(world.db).succeed(await claimed(world), REPORT, live_before=None)

        assert (await adapters(world).get(made.adapter_id)).live_version is None

    async def test_a_borrower_promotes_nothing(self, world: World) -> None:
        ref = await trained(world)
        made = await view(world, world.rival).create(ref.adapter_id, 1, GATE)

        await Evaluations(world.db).succeed(await claimed(world), REPORT, live_before=None)

        report = (await view(world, world.rival).get(made.id)).report
        assert report is not None
        assert report.promoted is False
        assert (await adapters(world).get(ref.adapter_id)).live_version is None


class TestGateOfAJob:
    async def test_its_adapter_answers_once_the_rules_held(self, world: World) -> None:
        ref = await trained(world, promote_if=GATE.model_dump())
        name = (await adapters(world).get(ref.adapter_id)).model_name
        for closed in (name, f"{name}:live"):
            with pytest.raises(ModelNotFound):
                await adapters(world).resolve(closed)
        work = await claimed(world)

        await Evaluations(world.db).succeed(work, REPORT, live_before=None)

        assert (work.version, work.plan) == (ref.version, GATE)
        for opened in (name, f"{name}:live"):
            assert (await adapters(world).resolve(opened)).ref.version == ref.version

    async def test_before_that_each_version_answers_to_its_own_name(self, world: World) -> None:
        ref = await trained(world, promote_if=GATE.model_dump())
        name = (await adapters(world).get(ref.adapter_id)).model_name

        assert (await adapters(world).resolve(f"{name}@2")).ref.version == 2
        assert (await adapters(world).resolve(f"{name}:ckpt-step-1")).ref.version == 1

    @pytest.mark.parametrize(
        ("report", "said"),
        [
            (REPORT, "kept all rules; version 2 is live."),
            (BAD_REPORT, "does not become live. loss is 2; it must be at most 1."),
        ],
    )
    async def test_its_events_tell_what_became_of_it(
        self, world: World, report: EvaluationReport, said: str
    ) -> None:
        await trained(world, promote_if=GATE.model_dump())
        work = await claimed(world)
        assert work.job_id is not None

        await Evaluations(world.db).succeed(work, report, live_before=None)

        assert (await world.messages(work.job_id))[-1].endswith(said)

    async def test_its_events_tell_that_the_evaluation_failed(self, world: World) -> None:
        await trained(world, promote_if=GATE.model_dump())
        work = await claimed(world)
        assert work.job_id is not None

        await Evaluations(world.db).fail(work, "The file is gone.")

        assert (await world.messages(work.job_id))[-1].endswith("failed: The file is gone.")
