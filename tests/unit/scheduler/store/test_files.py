from __future__ import annotations

import asyncio
from datetime import date
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import update

from scheduler.domain.errors import IdempotencyMismatch, InvalidInput, NotFound, QuotaExceeded
from scheduler.store.files import File, Files, TenantFiles, file_object_key, new_file_id
from scheduler.store.idempotency import Idempotency, IdempotencyKey
from scheduler.store.tables import idempotency_keys
from scheduler.store.usage import Usage, UsageTotal

if TYPE_CHECKING:
    from scheduler.domain.tenant import Tenant
    from scheduler.store.database import Database

KEY = IdempotencyKey(key="k", body_hash="h")


@pytest.fixture
def files(db: Database, tenant: Tenant) -> TenantFiles:
    return Files(db).for_tenant(tenant.id)


async def add(files: TenantFiles, **changes: object) -> File:
    file_id = new_file_id()
    fields = {
        "file_id": file_id,
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "num_bytes": 10,
        "object_key": file_object_key("org-1", file_id),
    }
    return await files.create(**(fields | changes))


async def test_a_created_file_can_be_read(files: TenantFiles) -> None:
    file = await add(files, filename="größe.jsonl")

    assert file.id.startswith("file-")
    assert file.filename == "größe.jsonl"
    assert file.status == "processed"
    assert await files.get(file.id) == file


async def test_another_tenants_file_does_not_exist(
    db: Database, files: TenantFiles, other_tenant: Tenant
) -> None:
    file = await add(files)
    stranger = Files(db).for_tenant(other_tenant.id)

    with pytest.raises(NotFound) as foreign:
        await stranger.get(file.id)
    with pytest.raises(NotFound):
        await stranger.delete(file.id)
    assert (await stranger.list()).items == ()
    assert await stranger.total_bytes() == 0
    assert foreign.value.message == (await _refusal(files, "file-x")).replace("file-x", file.id)


async def _refusal(files: TenantFiles, file_id: str) -> str:
    with pytest.raises(NotFound) as unknown:
        await files.get(file_id)
    return unknown.value.message


async def test_pages_cover_the_list_without_gap_or_repeat(files: TenantFiles) -> None:
    made = [(await add(files)).id for _ in range(7)]

    for order, expected in (("asc", made), ("desc", made[::-1])):
        seen, after, has_more = [], None, True
        while has_more:
            page = await files.list(after=after, limit=3, order=order)
            seen += [file.id for file in page]
            after, has_more = page.items[-1].id, page.has_more
        assert seen == expected


async def test_a_list_can_be_narrowed_to_a_purpose(files: TenantFiles) -> None:
    await add(files)
    results = await add(files, purpose="fine-tune-results")

    assert (await files.list(purpose="fine-tune-results")).items == (results,)


async def test_a_cursor_that_is_not_in_the_list_is_refused(files: TenantFiles) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await files.list(after="file-none")
    assert refusal.value.param == "after"


@pytest.mark.parametrize("limit", [0, -1, 10_001])
async def test_a_limit_out_of_range_is_refused(files: TenantFiles, limit: int) -> None:
    with pytest.raises(InvalidInput):
        await files.list(limit=limit)


async def test_a_deleted_file_is_gone(files: TenantFiles) -> None:
    file = await add(files)

    assert await files.delete(file.id) == file

    with pytest.raises(NotFound):
        await files.get(file.id)


async def test_stored_bytes_are_limited_per_tenant(files: TenantFiles) -> None:
    await add(files, num_bytes=60, max_total_bytes=100)

    with pytest.raises(QuotaExceeded):
        await add(files, num_bytes=41, max_total_bytes=100)
    await add(files, num_bytes=40, max_total_bytes=100)

    assert await files.total_bytes() == 100


async def test_racing_uploads_do_not_overrun_the_limit(files: TenantFiles) -> None:
    results = await asyncio.gather(
        *(add(files, num_bytes=30, max_total_bytes=100) for _ in range(6)), return_exceptions=True
    )

    assert sum(isinstance(result, QuotaExceeded) for result in results) == 3
    assert await files.total_bytes() == 90


class TestIdempotency:
    async def test_a_repeat_returns_the_first_file(self, files: TenantFiles) -> None:
        first = await add(files, idempotency=KEY)
        second = await add(files, idempotency=KEY)

        assert second == first
        assert (await files.list()).items == (first,)

    async def test_of_racing_creates_one_makes_the_file(self, files: TenantFiles) -> None:
        made = await asyncio.gather(*(add(files, idempotency=KEY) for _ in range(8)))

        assert len({file.id for file in made}) == 1
        assert len(await files.list()) == 1

    async def test_another_body_under_the_same_key_is_refused(self, files: TenantFiles) -> None:
        await add(files, idempotency=KEY)

        with pytest.raises(IdempotencyMismatch):
            await add(files, idempotency=IdempotencyKey(key="k", body_hash="other"))

        assert len(await files.list()) == 1

    async def test_a_refused_create_does_not_use_up_its_key(self, files: TenantFiles) -> None:
        with pytest.raises(QuotaExceeded):
            await add(files, max_total_bytes=1, idempotency=KEY)

        assert await add(files, idempotency=KEY)

    async def test_tenants_keys_are_apart(
        self, db: Database, files: TenantFiles, other_tenant: Tenant
    ) -> None:
        mine = await add(files, idempotency=KEY)
        theirs = await add(Files(db).for_tenant(other_tenant.id), idempotency=KEY)

        assert mine.id != theirs.id

    async def test_a_key_is_looked_up_before_any_work(
        self, db: Database, files: TenantFiles, tenant: Tenant
    ) -> None:
        lookup = Idempotency(db)
        assert await lookup.replay(tenant.id, KEY) is None

        file = await add(files, idempotency=KEY)

        assert await lookup.replay(tenant.id, KEY) == file.id
        with pytest.raises(IdempotencyMismatch):
            await lookup.replay(tenant.id, IdempotencyKey(key="k", body_hash="other"))

    async def test_a_key_is_forgotten_after_a_day(
        self, db: Database, files: TenantFiles, tenant: Tenant
    ) -> None:
        first = await add(files, idempotency=KEY)
        async with db.begin() as conn:
            day_ago = idempotency_keys.c.created_at - 24 * 3600
            await conn.execute(update(idempotency_keys).values(created_at=day_ago))

        assert await Idempotency(db).replay(tenant.id, KEY) is None
        second = await add(files, idempotency=KEY)

        assert second.id != first.id
        assert await Idempotency(db).purge() == 0

    async def test_old_keys_are_purged(self, db: Database, files: TenantFiles) -> None:
        await add(files, idempotency=KEY)
        async with db.begin() as conn:
            await conn.execute(update(idempotency_keys).values(created_at=0.0))

        assert await Idempotency(db).purge() == 1


class TestUsage:
    async def test_counts_add_up_over_days_and_models(
        self, db: Database, tenant: Tenant, other_tenant: Tenant
    ) -> None:
        usage, day = Usage(db), date(2026, 1, 31)
        await usage.add(tenant.id, day, "m", prompt_tokens=1, output_tokens=2)
        await usage.add(tenant.id, day, "m", prompt_tokens=10, trained_tokens=7)
        await usage.add(tenant.id, date(2026, 2, 1), "n", output_tokens=100)
        await usage.add(other_tenant.id, day, "m", prompt_tokens=1000)

        total = await usage.total(tenant.id)

        assert total == UsageTotal(prompt_tokens=11, output_tokens=102, trained_tokens=7)

    async def test_racing_additions_are_all_counted(self, db: Database, tenant: Tenant) -> None:
        usage = Usage(db)

        await asyncio.gather(
            *(usage.add(tenant.id, date(2026, 1, 1), "m", prompt_tokens=1) for _ in range(20))
        )

        assert (await usage.total(tenant.id)).prompt_tokens == 20

    async def test_a_tenant_without_any_has_zero(self, db: Database, tenant: Tenant) -> None:
        assert await Usage(db).total(tenant.id) == UsageTotal()
