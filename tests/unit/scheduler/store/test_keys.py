from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from scheduler.domain.errors import AuthenticationFailed, Conflict, InvalidInput, NotFound
from scheduler.domain.rate_limit import RateKind
from scheduler.store.keys import KEY_PATTERN, Keys, load_pepper
from scheduler.store.tables import api_keys
from scheduler.store.tenants import Tenants

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.tenant import Tenant
    from scheduler.store.database import Database

PEPPER = b"p" * 32


@pytest.fixture
def keys(db: Database) -> Keys:
    return Keys(db, PEPPER)


async def test_a_key_names_its_tenant(keys: Keys, tenant: Tenant, other_tenant: Tenant) -> None:
    _, mine = await keys.create(tenant.id, "laptop")
    _, theirs = await keys.create(other_tenant.id, "laptop")

    assert await keys.authenticate(mine) == tenant
    assert await keys.authenticate(theirs) == other_tenant


async def test_a_key_has_the_documented_shape(keys: Keys, tenant: Tenant) -> None:
    key_id, plaintext = await keys.create(tenant.id, "laptop")

    match = KEY_PATTERN.fullmatch(plaintext)
    assert match is not None
    assert key_id == f"key-{match['public']}"


async def test_the_database_holds_no_plaintext(db: Database, keys: Keys, tenant: Tenant) -> None:
    _, plaintext = await keys.create(tenant.id, "laptop")

    async with db.read() as conn:
        stored = str((await conn.execute(select(api_keys))).all())

    assert plaintext not in stored
    secret = plaintext.split("_", 1)[1].rpartition("_")[0]  # which may hold underscores itself
    assert secret not in stored


async def test_another_pepper_opens_nothing(db: Database, keys: Keys, tenant: Tenant) -> None:
    _, plaintext = await keys.create(tenant.id, "laptop")

    with pytest.raises(AuthenticationFailed):
        await Keys(db, b"q" * 32).authenticate(plaintext)


async def test_a_revoked_key_opens_nothing(keys: Keys, tenant: Tenant) -> None:
    key_id, plaintext = await keys.create(tenant.id, "laptop")

    await keys.revoke(key_id)
    await keys.revoke(key_id)

    with pytest.raises(AuthenticationFailed):
        await keys.authenticate(plaintext)
    (shown,) = await keys.list(tenant.id)
    assert shown.revoked_at is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"),  # checksum
        lambda key: key.replace("sk-tandem", "sk-other"),
        lambda key: key[:30] + ("x" if key[30] != "x" else "y") + key[31:],  # secret part
        lambda key: key + "\n",
        lambda key: key + "0",
        lambda _: "",
        lambda _: "sk-tandem-ü",
    ],
)
async def test_a_spoilt_key_is_refused_without_asking_the_database(
    tenant: Tenant, keys: Keys, spoil, db: Database
) -> None:
    _, plaintext = await keys.create(tenant.id, "laptop")
    await db.close()
    unreachable = Keys(None, PEPPER)  # any use of it would be an AttributeError

    with pytest.raises(AuthenticationFailed):
        await unreachable.authenticate(spoil(plaintext))


async def test_a_well_formed_but_unknown_key_gets_the_same_answer(
    keys: Keys, tenant: Tenant, db: Database
) -> None:
    _, plaintext = await keys.create(tenant.id, "laptop")
    async with db.begin() as conn:
        await conn.execute(api_keys.delete())

    with pytest.raises(AuthenticationFailed) as unknown:
        await keys.authenticate(plaintext)
    with pytest.raises(AuthenticationFailed) as malformed:
        await keys.authenticate("nonsense")

    assert unknown.value.message == malformed.value.message


async def test_a_key_for_nobody_is_refused(keys: Keys) -> None:
    with pytest.raises(NotFound):
        await keys.create("org-none", "x")
    with pytest.raises(NotFound):
        await keys.revoke("key-none")


async def test_the_list_shows_only_the_tenants_own_keys(
    keys: Keys, tenant: Tenant, other_tenant: Tenant
) -> None:
    key_id, _ = await keys.create(tenant.id, "laptop")
    await keys.create(other_tenant.id, "server")

    assert [(key.id, key.name) for key in await keys.list(tenant.id)] == [(key_id, "laptop")]


class TestThePepper:
    def test_it_is_made_once_and_only_for_its_owner(self, tmp_path: Path) -> None:
        path = tmp_path / "data" / "pepper"

        pepper = load_pepper(path)

        assert load_pepper(path) == pepper
        assert len(pepper) == 32
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [file.name for file in path.parent.iterdir()] == ["pepper"]

    async def test_processes_that_start_at_once_agree(self, tmp_path: Path) -> None:
        path = tmp_path / "pepper"

        peppers = await asyncio.gather(*(asyncio.to_thread(load_pepper, path) for _ in range(8)))

        assert len(set(peppers)) == 1

    def test_a_truncated_one_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "pepper").write_bytes(b"short")

        with pytest.raises(ValueError, match="restore it"):
            load_pepper(tmp_path / "pepper")


class TestTenants:
    async def test_a_created_tenant_is_found(self, db: Database) -> None:
        tenant = await Tenants(db).create("team-1", is_admin=True, weight=2.0)

        assert tenant.is_admin
        assert tenant.id.startswith("org-")
        assert await Tenants(db).get(tenant.id) == tenant
        assert await Tenants(db).get_by_name("team-1") == tenant

    @pytest.mark.parametrize("name", ["", "A", "a b", "a:b", "-a", "a/b", "ä", "a" * 64, "a\n"])
    async def test_a_name_that_is_no_slug_is_refused(self, db: Database, name: str) -> None:
        with pytest.raises(InvalidInput, match="slug"):
            await Tenants(db).create(name)

    async def test_a_taken_name_is_refused(self, db: Database, tenant: Tenant) -> None:
        with pytest.raises(Conflict):
            await Tenants(db).create(tenant.name)

    async def test_what_is_given_is_changed_and_the_rest_stays(self, db: Database) -> None:
        tenants = Tenants(db)
        tenant = await tenants.create("team-1", weight=2.0)
        assert tenant.service_class == "default"

        faster = await tenants.change(tenant.id, service_class="gold")
        assert (faster.weight, faster.service_class) == (2.0, "gold")
        heavier = await tenants.change(tenant.id, weight=3.0)
        assert (heavier.weight, heavier.service_class) == (3.0, "gold")
        assert await tenants.change(tenant.id) == await tenants.get(tenant.id) == heavier

    @pytest.mark.parametrize("weight", [0.0, -1.0, 1000.5, float("nan"), float("inf")])
    async def test_a_weight_out_of_range_is_refused(
        self, db: Database, tenant: Tenant, weight: float
    ) -> None:
        with pytest.raises(InvalidInput, match="out of range"):
            await Tenants(db).change(tenant.id, weight=weight)
        with pytest.raises(InvalidInput, match="out of range"):
            await Tenants(db).create("heavy", weight=weight)
        with pytest.raises(NotFound):
            await Tenants(db).change("org-none", weight=1.0)

    async def test_rate_limits_come_with_the_key_and_are_lifted_by_0(
        self, db: Database, keys: Keys
    ) -> None:
        tenant = await Tenants(db).create("team-1", requests_per_minute=60)
        _, plaintext = await keys.create(tenant.id, "k")

        await Tenants(db).change(tenant.id, tokens_per_minute=9000)
        limited = await keys.authenticate(plaintext)
        await Tenants(db).change(tenant.id, requests_per_minute=0)
        lifted = await keys.authenticate(plaintext)

        assert limited.rate_limits == {RateKind.REQUESTS: 60, RateKind.TOKENS: 9000}
        assert lifted.rate_limits == {RateKind.TOKENS: 9000}

    @pytest.mark.parametrize("rate", [-1, 10**9 + 1])
    async def test_a_rate_out_of_range_is_refused(
        self, db: Database, tenant: Tenant, rate: int
    ) -> None:
        with pytest.raises(InvalidInput, match="out of range"):
            await Tenants(db).change(tenant.id, tokens_per_minute=rate)
        with pytest.raises(InvalidInput, match="out of range"):
            await Tenants(db).create("fast", requests_per_minute=rate)

    async def test_an_unknown_one_is_not_found(self, db: Database) -> None:
        with pytest.raises(NotFound):
            await Tenants(db).get("org-none")
        with pytest.raises(NotFound):
            await Tenants(db).get_by_name("none")
