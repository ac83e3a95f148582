"""Versions of an adapter: their names, numbers and origins, on every database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import (
    Conflict,
    IdempotencyMismatch,
    InvalidInput,
    ModelNotFound,
    QuotaExceeded,
)
from scheduler.domain.job import FinetuneSpec
from scheduler.store.checks import Checks
from scheduler.store.files import Files, file_object_key, new_file_id
from scheduler.store.idempotency import IdempotencyKey
from scheduler.store.job_record import JobDraft
from scheduler.store.jobs import Jobs
from scheduler.store.leases import Leases
from tests.integration.adapter_store.conftest import version
from tests.integration.store_kit import commit

if TYPE_CHECKING:
    from tests.integration.adapter_store.conftest import World


async def test_an_import_answers_to_every_form_of_its_name(world: World) -> None:
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
async def test_a_name_that_means_nothing_is_not_found(world: World, mark: str) -> None:
    adapter = await world.imported()

    with pytest.raises(ModelNotFound):
        await world.mine.resolve(adapter.model_name + mark)


async def test_a_job_writes_down_where_its_versions_come_from(world: World) -> None:
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

    await Leases(world.db).commit_checkpoint(job.id, leased.epoch, commit(5, base_digest="base"))
    await Leases(world.db).finish(job.id, leased.epoch, commit(9, base_digest="base"))

    first, second = (await world.mine.get(job.adapter_id)).versions
    assert (first.origin, first.job_id, first.method) == ("job", job.id, "lora")
    assert first.base_digest == "base"
    assert first.data_digests == {
        "training_file": "train-digest", "validation_file": "valid-digest",
    }  # fmt: skip
    assert first.metrics == {"train_loss": 0.5}
    assert (first.parent_version, second.parent_version) == (None, 1)


async def test_pages_hold_every_adapter_and_version_once(world: World) -> None:
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


async def test_a_version_cannot_slip_into_a_running_job(world: World) -> None:
    leased = await world.leased()
    await Leases(world.db).commit_checkpoint(leased.job_id, leased.epoch, commit(5))

    with pytest.raises(Conflict):
        await world.mine.add_version(leased.adapter_id, version(2))


async def test_racing_versions_all_get_a_number(world: World) -> None:
    adapter = await world.imported()

    await asyncio.gather(*(world.mine.add_version(adapter.id, version(n)) for n in range(6)))

    numbers = [v.version for v in (await world.mine.get(adapter.id)).versions]
    assert numbers == [1, 2, 3, 4, 5, 6, 7]


async def test_imports_stay_within_the_quota(world: World) -> None:
    adapter = await world.imported(max_total_bytes=25)

    await world.mine.add_version(adapter.id, version(2), max_total_bytes=25)
    with pytest.raises(QuotaExceeded):
        await world.mine.add_version(adapter.id, version(3), max_total_bytes=25)
    with pytest.raises(QuotaExceeded):
        await world.imported(max_total_bytes=25)

    assert len((await world.mine.get(adapter.id)).versions) == 2


async def test_a_repeated_import_returns_the_first(world: World) -> None:
    key = IdempotencyKey(key="k", body_hash="h")
    first = await world.imported(idempotency=key)

    again = await world.mine.create("other", "named", "m", version(1), idempotency=key)

    assert again == first
    assert len(await world.mine.list()) == 1
    with pytest.raises(IdempotencyMismatch):
        await world.imported(idempotency=IdempotencyKey(key="k", body_hash="other"))
