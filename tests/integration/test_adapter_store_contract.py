"""What the adapter registry promises, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from scheduler.domain.adapter_order import Compression, MergeSource, Merging
from scheduler.domain.errors import (
    AdapterInUse,
    Conflict,
    IdempotencyMismatch,
    InvalidInput,
    ModelNotFound,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
)
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.work_status import WorkStatus
from scheduler.store.adapter_imports import StoredVersion, new_adapter_id
from scheduler.store.adapter_orders import Orders, OrderWork
from scheduler.store.adapter_pointers import MAX_TAGS
from scheduler.store.adapters import Adapter, Adapters, TenantAdapters
from scheduler.store.checks import Checks
from scheduler.store.database import Database, migrate
from scheduler.store.files import Files, file_object_key, new_file_id
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.job_record import JobDraft
from scheduler.store.jobs import Jobs
from scheduler.store.leased_work import MAX_TRIES
from scheduler.store.leases import LeasedJob, Leases
from scheduler.store.tables import metadata
from scheduler.store.tenants import Tenants
from tests.integration.store_kit import commit, create_job

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from scheduler.domain.tenant import Tenant


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
async def db(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    sqlite = request.param == "sqlite"
    url = (
        f"sqlite+aiosqlite:///{tmp_path}/t.db"
        if sqlite
        else request.getfixturevalue("postgres").url
    )
    await migrate(url)
    database = Database(url)
    if not sqlite:
        async with database.begin() as conn:
            await conn.execute(text(f"TRUNCATE {', '.join(metadata.tables)}"))
    yield database
    await database.close()


@dataclass
class World:
    """An owner, a borrower and a stranger."""

    db: Database
    owner: Tenant
    borrower: Tenant
    stranger: Tenant

    @property
    def mine(self) -> TenantAdapters:
        return Adapters(self.db).for_tenant(self.owner.id)

    @property
    def theirs(self) -> TenantAdapters:
        return Adapters(self.db).for_tenant(self.borrower.id)

    @property
    def strange(self) -> TenantAdapters:
        return Adapters(self.db).for_tenant(self.stranger.id)

    async def imported(self, num_versions: int = 1, **options: Any) -> Adapter:
        adapter_id = new_adapter_id()
        await self.mine.create(adapter_id, "named", "m", version(1), **options)
        for number in range(2, num_versions + 1):
            await self.mine.add_version(adapter_id, version(number))
        return await self.mine.get(adapter_id)

    async def leased(self) -> LeasedJob:
        job = await create_job(self.db, self.owner)
        check = await Checks(self.db).begin(job.id)
        assert check is not None
        await Checks(self.db).succeed(check, train_key="t", valid_key=None, message="ok")
        leased = await Leases(self.db).claim(job.id, "w1")
        assert leased is not None
        return leased

    async def number_of(self, name: str, view: TenantAdapters | None = None) -> int:
        return (await (view or self.mine).resolve(name)).ref.version


def version(number: int, num_bytes: int = 10) -> StoredVersion:
    return StoredVersion(
        uri=f"adapters/x/{number}", digest=f"d{number}", num_bytes=num_bytes,
        base_digest="base", method="lora",
    )  # fmt: skip


@pytest.fixture
async def world(db: Database) -> World:
    tenants = Tenants(db)
    names = ("acme", "buddy", "rival")
    return World(db, *[await tenants.create(name) for name in names])


class TestVersions:
    async def test_an_import_answers_to_every_form_of_its_name(self, world: World) -> None:
        adapter = await world.imported(2)
        name = adapter.model_name

        assert name == f"ft:m:acme:named:{adapter.id}"
        assert adapter.job_id is None
        assert [v.version for v in adapter.versions] == [1, 2]
        assert await world.number_of(name) == 1
        assert await world.number_of(f"{name}@1") == 1
        assert await world.number_of(f"{name}@2") == 2
        assert await world.number_of(f"{name}:live") == 2

    @pytest.mark.parametrize("mark", ["@3", "@0", "@01", "@x", "@", ":none", ":", "@99999999999"])
    async def test_a_name_that_means_nothing_is_not_found(self, world: World, mark: str) -> None:
        adapter = await world.imported()

        with pytest.raises(ModelNotFound):
            await world.mine.resolve(adapter.model_name + mark)

    async def test_a_job_writes_down_where_its_versions_come_from(self, world: World) -> None:
        files = Files(world.db).for_tenant(world.owner.id)
        ids = [new_file_id(), new_file_id()]
        for file_id, digest in zip(ids, ("train-digest", "valid-digest"), strict=True):
            key = file_object_key(world.owner.id, file_id)
            await files.create(
                file_id=file_id, filename="f", purpose="fine-tune", num_bytes=1, object_key=key,
                sha256=digest,
            )  # fmt: skip
        draft = JobDraft(
            spec=FinetuneSpec(base_model="m"), training_file=ids[0], validation_file=ids[1],
            suffix="s",
        )  # fmt: skip
        job = await Jobs(world.db).for_tenant(world.owner.id).create(draft)
        check = await Checks(world.db).begin(job.id)
        assert check is not None
        await Checks(world.db).succeed(check, train_key="t", valid_key=None, message="ok")
        leased = await Leases(world.db).claim(job.id, "w1")
        assert leased is not None

        await Leases(world.db).commit_checkpoint(
            job.id, leased.epoch, commit(5, base_digest="base")
        )
        await Leases(world.db).finish(job.id, leased.epoch, commit(9, base_digest="base"))

        first, second = (await world.mine.get(job.adapter_id)).versions
        assert (first.origin, first.job_id, first.method) == ("job", job.id, "lora")
        assert first.base_digest == "base"
        assert first.data_digests == {
            "training_file": "train-digest", "validation_file": "valid-digest",
        }  # fmt: skip
        assert first.metrics == {"train_loss": 0.5}
        assert (first.parent_version, second.parent_version) == (None, 1)

    async def test_pages_hold_every_adapter_and_version_once(self, world: World) -> None:
        ids = [(await world.imported()).id for _ in range(5)]
        many = await world.imported(5)

        first = await world.mine.list(limit=4)
        rest = await world.mine.list(limit=4, after=first.items[-1].id)
        newest = await world.mine.versions(many.id, limit=3)
        older = await world.mine.versions(many.id, limit=3, after=newest.items[-1].version)

        assert [a.id for a in (*first, *rest)] == [*ids, many.id]
        assert (first.has_more, rest.has_more) == (True, False)
        assert [v.version for v in (*newest, *older)] == [5, 4, 3, 2, 1]
        with pytest.raises(InvalidInput):
            await world.mine.list(after="nobody")

    async def test_a_version_cannot_slip_into_a_running_job(self, world: World) -> None:
        leased = await world.leased()
        await Leases(world.db).commit_checkpoint(leased.job_id, leased.epoch, commit(5))

        with pytest.raises(Conflict):
            await world.mine.add_version(leased.adapter_id, version(2))

    async def test_racing_versions_all_get_a_number(self, world: World) -> None:
        adapter = await world.imported()

        await asyncio.gather(*(world.mine.add_version(adapter.id, version(n)) for n in range(6)))

        numbers = [v.version for v in (await world.mine.get(adapter.id)).versions]
        assert numbers == [1, 2, 3, 4, 5, 6, 7]

    async def test_imports_stay_within_the_quota(self, world: World) -> None:
        adapter = await world.imported(max_total_bytes=25)

        await world.mine.add_version(adapter.id, version(2), max_total_bytes=25)
        with pytest.raises(QuotaExceeded):
            await world.mine.add_version(adapter.id, version(3), max_total_bytes=25)
        with pytest.raises(QuotaExceeded):
            await world.imported(max_total_bytes=25)

        assert len((await world.mine.get(adapter.id)).versions) == 2

    async def test_a_repeated_import_returns_the_first(self, world: World) -> None:
        key = IdempotencyKey(key="k", body_hash="h")
        first = await world.imported(idempotency=key)

        again = await world.mine.create("other", "named", "m", version(1), idempotency=key)

        assert again == first
        assert len(await world.mine.list()) == 1
        with pytest.raises(IdempotencyMismatch):
            await world.imported(idempotency=IdempotencyKey(key="k", body_hash="other"))


class TestLive:
    async def test_a_promotion_moves_the_plain_name_and_live_but_no_version(
        self, world: World
    ) -> None:
        adapter = await world.imported(3)
        name = adapter.model_name

        promoted = await world.mine.promote(adapter.id, 2)
        await world.mine.add_version(adapter.id, version(4))

        assert promoted.published_version == 2
        assert await world.number_of(name) == 2
        assert await world.number_of(f"{name}:live") == 2
        assert await world.number_of(f"{name}@4") == 4

    async def test_rolling_back_walks_through_all_promotions(self, world: World) -> None:
        adapter = await world.imported(3)
        for number in (3, 2, 2, 3):  # the repeated one is no step of its own
            await world.mine.promote(adapter.id, number)

        seen = [await world.mine.roll_back(adapter.id) for _ in range(3)]

        assert [a.live_version for a in seen] == [2, 3, None]
        assert await world.number_of(adapter.model_name) == 1
        with pytest.raises(Conflict):
            await world.mine.roll_back(adapter.id)

    async def test_a_promotion_after_a_rollback_goes_back_to_what_was_live(
        self, world: World
    ) -> None:
        adapter = await world.imported(3)
        await world.mine.promote(adapter.id, 2)
        await world.mine.promote(adapter.id, 3)
        await world.mine.roll_back(adapter.id)
        await world.mine.promote(adapter.id, 1)

        assert (await world.mine.roll_back(adapter.id)).live_version == 2

    async def test_a_promoted_checkpoint_of_a_running_job_stays_live_when_the_job_ends(
        self, world: World
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

    async def test_an_unknown_version_is_not_promoted(self, world: World) -> None:
        adapter = await world.imported()

        with pytest.raises(NotFound):
            await world.mine.promote(adapter.id, 2)

        assert await world.mine.get(adapter.id) == adapter


class TestTags:
    async def test_a_tag_is_put_moved_and_forgotten(self, world: World) -> None:
        adapter = await world.imported(2)
        name = f"{adapter.model_name}:prod"

        await world.mine.set_tag(adapter.id, "prod", 1)
        assert await world.number_of(name) == 1
        moved = await world.mine.set_tag(adapter.id, "prod", 2)
        assert moved.tags == {"prod": 2}
        assert await world.number_of(name) == 2

        await world.mine.drop_tag(adapter.id, "prod")
        with pytest.raises(ModelNotFound):
            await world.number_of(name)
        with pytest.raises(NotFound):
            await world.mine.drop_tag(adapter.id, "prod")

    @pytest.mark.parametrize(
        "tag", ["live", "latest", "ckpt-step-5", "", "A", "-a", "a b", "a:b", "a@1", "a" * 65]
    )
    async def test_a_tag_is_a_short_word_without_a_meaning(self, world: World, tag: str) -> None:
        adapter = await world.imported()

        with pytest.raises(InvalidInput) as caught:
            await world.mine.set_tag(adapter.id, tag, 1)
        assert caught.value.param == "tag"

    async def test_tags_are_limited_but_can_be_moved_at_the_limit(self, world: World) -> None:
        adapter = await world.imported(2)
        for number in range(MAX_TAGS):
            await world.mine.set_tag(adapter.id, f"t{number}", 1)

        with pytest.raises(InvalidInput):
            await world.mine.set_tag(adapter.id, "one-more", 1)
        await world.mine.set_tag(adapter.id, "t0", 2)


class TestSharing:
    async def test_a_borrower_calls_and_sees_but_learns_no_jobs_and_no_data(
        self, world: World
    ) -> None:
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

    async def test_only_the_owner_changes_and_a_stranger_finds_nothing(self, world: World) -> None:
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

    async def test_unsharing_takes_effect_at_once(self, world: World) -> None:
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

    async def test_nobody_shares_with_itself_or_with_nobody(self, world: World) -> None:
        adapter = await world.imported()

        with pytest.raises(InvalidInput):
            await world.mine.share(adapter.id, world.owner.id)
        with pytest.raises(NotFound):
            await world.mine.share(adapter.id, "org-unknown")


class TestDeletion:
    async def test_a_pinned_or_shared_adapter_stays(self, world: World) -> None:
        adapter = await world.imported()

        await world.mine.set_pinned(adapter.id, True)
        with pytest.raises(AdapterInUse, match="pinned"):
            await world.mine.delete(adapter.id)
        await world.mine.set_pinned(adapter.id, False)
        await world.mine.share(adapter.id, world.borrower.id)
        with pytest.raises(AdapterInUse, match="shared"):
            await world.mine.delete(adapter.id)
        await world.mine.unshare(adapter.id, world.borrower.id)

        await world.mine.delete(adapter.id)
        assert len(await world.mine.list()) == 0

    async def test_what_pointed_at_its_versions_goes_with_it(self, world: World) -> None:
        adapter = await world.imported(2)
        await world.mine.set_tag(adapter.id, "prod", 2)
        await world.mine.promote(adapter.id, 2)

        await world.mine.delete(adapter.id)

        for mark in ("", "@1", ":live", ":prod"):
            with pytest.raises(ModelNotFound):
                await world.mine.resolve(adapter.model_name + mark)
        async with world.db.read() as conn:
            for table in ("adapter_tags", "adapter_promotions", "adapter_versions"):
                assert await conn.scalar(text(f"SELECT count(*) FROM {table}")) == 0


class TestExports:
    async def test_one_is_ordered_made_and_kept(self, world: World) -> None:
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

    async def test_a_late_process_writes_nothing(self, world: World) -> None:
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

    async def test_a_dead_process_is_replaced_until_it_is_given_up(self, world: World) -> None:
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

    async def test_an_abandoned_one_is_free_and_hinted_at_once(self, world: World) -> None:
        adapter = await world.imported()
        orders = Orders(world.db)
        await orders.for_tenant(world.owner.id).export(adapter.id, 1)
        for _ in range(MAX_TRIES + 2):
            (name,) = await orders.hint(60)
            work = await orders.begin(name)
            assert work is not None
            await orders.abandon(work)

    async def test_others_neither_order_nor_see_it(self, world: World) -> None:
        adapter = await world.imported()
        await world.mine.share(adapter.id, world.borrower.id)
        await Orders(world.db).for_tenant(world.owner.id).export(adapter.id, 1)

        for other in (world.borrower, world.stranger):
            orders = Orders(world.db).for_tenant(other.id)
            for call in (orders.export, orders.exported, orders.finished_export):
                with pytest.raises(NotFound):
                    await call(adapter.id, 1)

    async def test_they_are_limited_and_go_with_the_adapter(self, world: World) -> None:
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

    async def test_one_that_failed_is_not_kept(self, world: World) -> None:
        adapter = await world.imported(2)
        mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
        failing = await mine.export(adapter.id, 1, max_kept=1)
        await orders.fail(await claimed(orders, failing.id), "No room.")

        assert await mine.export(adapter.id, 2, max_kept=1)
        with pytest.raises(QuotaExceeded):
            await mine.export(adapter.id, 1, max_kept=1)

    async def test_deleting_one_tells_what_was_made_since_it_was_seen(self, world: World) -> None:
        adapter = await world.imported()
        mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
        seen = await mine.export(adapter.id, 1)
        work = await claimed(orders, seen.id)
        await orders.succeed_export(work, {"model.safetensors": 5})

        assert await mine.delete(seen) == work.target_uri
        assert await mine.delete(seen) is None


class TestMadeVersions:
    async def test_a_compression_becomes_a_version_with_its_recipe(self, world: World) -> None:
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

    async def test_orders_of_one_instant_are_paged_without_loss(self, world: World) -> None:
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
        self, world: World, promoted: int | None, live: int
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
        self, world: World, meanwhile: int | None, promoted: bool
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

    async def test_a_merge_becomes_an_adapter_of_its_own(self, world: World) -> None:
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

    async def test_all_orders_of_an_adapter_go_with_it(self, world: World) -> None:
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

    async def test_a_full_model_is_no_order_of_these(self, world: World) -> None:
        adapter = await world.imported()
        mine = Orders(world.db).for_tenant(world.owner.id)
        exported = await mine.export(adapter.id, 1)

        with pytest.raises(NotFound):
            await mine.get(exported.id)

    async def test_nothing_is_made_of_what_a_job_still_makes(self, world: World) -> None:
        leased = await world.leased()
        await Leases(world.db).commit_checkpoint(leased.job_id, leased.epoch, commit(5))
        mine = Orders(world.db).for_tenant(world.owner.id)

        with pytest.raises(Conflict, match="still makes versions"):
            await mine.compress(leased.adapter_id, 1, Compression())

    async def test_a_late_process_makes_no_version(self, world: World) -> None:
        adapter = await world.imported()
        mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
        ordered = await mine.compress(adapter.id, 1, Compression())
        late = await claimed(orders, ordered.id)
        await expire_orders(world.db)
        work = await claimed(orders, ordered.id)

        assert not await orders.succeed_version(late, made(late), name=None, promote=True)
        assert await orders.succeed_version(work, made(work), name=None, promote=False)

        assert len((await world.mine.get(adapter.id)).versions) == 2

    async def test_what_is_made_counts_against_the_tenants_room(self, world: World) -> None:
        adapter = await world.imported()
        mine, orders = Orders(world.db).for_tenant(world.owner.id), Orders(world.db)
        held = adapter.versions[0].num_bytes
        ordered = await mine.compress(adapter.id, 1, Compression(), max_total_bytes=held + 6)
        work = await claimed(orders, ordered.id)

        with pytest.raises(QuotaExceeded):
            await orders.succeed_version(work, made(work), name=None, promote=False)

        assert len((await world.mine.get(adapter.id)).versions) == 1

    async def test_open_orders_are_limited_and_a_key_repeats_none(self, world: World) -> None:
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

    async def test_others_neither_compress_nor_see_it(self, world: World) -> None:
        adapter = await world.imported()
        await world.mine.share(adapter.id, world.borrower.id)
        mine = (
            await Orders(world.db).for_tenant(world.owner.id).compress(adapter.id, 1, Compression())
        )

        for other in (world.borrower, world.stranger):
            theirs = Orders(world.db).for_tenant(other.id)
            for call in (
                theirs.compress(adapter.id, 1, Compression()),
                theirs.get(mine.id),
            ):
                with pytest.raises(NotFound):
                    await call


async def claimed(orders: Orders, order_id: str) -> OrderWork:
    work = await orders.begin(order_id)
    assert work is not None
    return work


def made(work: OrderWork) -> StoredVersion:
    """What a task stores."""
    return StoredVersion(
        uri=work.target_uri, digest="made", num_bytes=7, base_digest="b", method="lora",
        origin=work.kind.value, parent_version=work.version, recipe={"codec": "compeft"},
    )  # fmt: skip


async def expire_orders(db: Database) -> None:
    async with db.begin() as conn:
        await conn.execute(text("UPDATE adapter_orders SET lease_until = 1, hinted_at = NULL"))


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
