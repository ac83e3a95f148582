"""Backups of a folder's database and objects, and what may not become of them."""

from __future__ import annotations

import json
import sqlite3
import stat
import tarfile
from typing import TYPE_CHECKING

import pytest

from scheduler.backup.make import back_up
from scheduler.backup.restore import restore
from scheduler.data_dir import accounts, store_settings
from scheduler.domain.errors import Conflict, InvalidInput, NotFound
from scheduler.settings import StoreSettings
from scheduler.store import dump
from scheduler.store.objects import ObjectStore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
async def installation(tmp_path: Path) -> StoreSettings:
    """One tenant with a key, two objects."""
    settings = store_settings(tmp_path / "data")
    async with accounts(settings) as known:
        tenant = await known.tenant("team-a")
        await known.keys.create(tenant.id, "test")
    objects = ObjectStore(settings.object_store_url)
    await objects.put_bytes("adapters/a/1/adapter.bin", b"weights")
    await objects.put_bytes("files/f", b"")
    return settings


@pytest.mark.parametrize("name", ["saved", "saved.tar"])
async def test_a_restored_installation_has_the_tenants_keys_and_objects(
    name: str, installation: StoreSettings, tmp_path: Path
) -> None:
    async with accounts(installation) as known:
        tenant = await known.tenant("team-a")
        _, plaintext = await known.keys.create(tenant.id, "kept")
        await back_up(installation, tmp_path / name)
        await known.tenant("too-late")

    target = store_settings(tmp_path / "restored")
    await restore(target, tmp_path / name)

    async with accounts(target) as known:
        assert (await known.keys.authenticate(plaintext)).name == "team-a"
        assert [tenant.name for tenant in await known.tenants.list()] == ["team-a"]
    objects = ObjectStore(target.object_store_url)
    assert await objects.keys() == {"adapters/a/1/adapter.bin", "files/f"}
    assert await objects.get_bytes("adapters/a/1/adapter.bin") == b"weights"
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) & 0o077 == 0


async def test_a_dump_waits_for_no_writer_and_holds_nothing_uncommitted(
    installation: StoreSettings, tmp_path: Path
) -> None:
    writer = sqlite3.connect(installation.data_dir / "tandem.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE tenants SET name = 'half-way'")

    await back_up(installation, tmp_path / "saved")
    writer.execute("ROLLBACK")
    writer.close()

    target = store_settings(tmp_path / "restored")
    await restore(target, tmp_path / "saved")
    async with accounts(target) as known:
        assert [tenant.name for tenant in await known.tenants.list()] == ["team-a"]


async def test_a_newer_dump_is_taken_when_an_object_went_away_meanwhile(
    installation: StoreSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumps: list[Path] = []
    objects = installation.data_dir / "objects"
    save = dump.SqliteDump.save

    def save_and_replace(self: dump.SqliteDump, file: Path) -> None:
        save(self, file)
        dumps.append(file)
        if len(dumps) == 1:
            (objects / "files/f").rename(objects / "files/g")

    monkeypatch.setattr(dump.SqliteDump, "save", save_and_replace)
    manifest = await back_up(installation, tmp_path / "saved")

    assert len(dumps) == 2
    assert "files/g" in manifest.object_keys()


@pytest.mark.parametrize("name", ["saved", "saved.tar"])
async def test_a_failed_backup_leaves_nothing(
    name: str, installation: StoreSettings, tmp_path: Path
) -> None:
    installation.key_pepper_file.unlink()

    with pytest.raises(FileNotFoundError):
        await back_up(installation, tmp_path / name)

    assert [path.name for path in tmp_path.iterdir()] == ["data"]


async def test_a_backup_replaces_nothing(installation: StoreSettings, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()

    with pytest.raises(Conflict, match="exists"):
        await back_up(installation, tmp_path / "saved")


async def test_a_folder_without_a_service_cannot_be_backed_up(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no database"):
        await back_up(StoreSettings(data_dir=tmp_path / "none"), tmp_path / "saved")

    assert list(tmp_path.iterdir()) == []


async def test_a_folder_in_use_is_refused_and_left_alone(
    installation: StoreSettings, tmp_path: Path
) -> None:
    await back_up(installation, tmp_path / "saved")

    for held in ("pepper", "objects/files/f", "tandem.db"):
        target = store_settings(tmp_path / held.replace("/", "-"))
        (target.data_dir / held).parent.mkdir(parents=True, exist_ok=True)
        content = (installation.data_dir / held).read_bytes()
        (target.data_dir / held).write_bytes(content)
        with pytest.raises(Conflict):
            await restore(target, tmp_path / "saved")
        assert (target.data_dir / held).read_bytes() == content


@pytest.mark.parametrize("member", ["database", "objects/adapters/a/1/adapter.bin", "pepper"])
async def test_a_damaged_backup_is_refused_before_anything_is_written(
    member: str, installation: StoreSettings, tmp_path: Path
) -> None:
    await back_up(installation, tmp_path / "saved")
    content = (tmp_path / "saved" / member).read_bytes()
    (tmp_path / "saved" / member).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    target = store_settings(tmp_path / "restored")

    with pytest.raises(InvalidInput, match=f"damaged: {member} is not"):
        await restore(target, tmp_path / "saved")

    assert not target.key_pepper_file.exists()
    assert not (target.data_dir / "objects").exists()


async def test_a_newer_schema_is_refused(installation: StoreSettings, tmp_path: Path) -> None:
    await back_up(installation, tmp_path / "saved")
    path = tmp_path / "saved/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_revision": "9999"}))

    with pytest.raises(InvalidInput, match="9999 is newer"):
        await restore(store_settings(tmp_path / "restored"), tmp_path / "saved")


async def test_another_kind_of_database_is_refused(
    installation: StoreSettings, tmp_path: Path
) -> None:
    await back_up(installation, tmp_path / "saved")
    server = StoreSettings(data_dir=tmp_path, database_url="postgresql+psycopg://db/tandem")

    with pytest.raises(InvalidInput, match="cannot become a postgresql one"):
        await restore(server, tmp_path / "saved")


async def test_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass

    for name in ("text", "empty.tar", "."):
        with pytest.raises(InvalidInput, match="no backup"):
            await restore(store_settings(tmp_path / "restored"), tmp_path / name)


def test_postgresql_without_its_programs_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    server = dump.dump_of("postgresql+psycopg://tandem:secret@db/tandem")

    with pytest.raises(InvalidInput, match="pg_dump is not installed"):
        server.save(tmp_path / "database")


def test_postgresqls_password_is_no_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "pg_dump"
    program.write_text('#!/bin/sh\necho "$@" > "$0.args"\necho "$PGPASSWORD" > "$0.password"\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    dump.dump_of("postgresql+psycopg://tandem:secret@db:5433/tandem").save(tmp_path / "database")

    arguments = (tmp_path / "pg_dump.args").read_text().split()
    assert arguments[-1] == "postgresql://tandem@db:5433/tandem"
    assert "secret" not in " ".join(arguments)
    assert (tmp_path / "pg_dump.password").read_text() == "secret\n"
