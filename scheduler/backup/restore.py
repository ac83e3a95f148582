"""Puts a backup into an empty place."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from pydantic import ValidationError

from scheduler.backup.archive import open_backup
from scheduler.backup.digest import DigestReader, digest_of
from scheduler.backup.manifest import DATABASE, MANIFEST, OBJECTS, PEPPER, BackupManifest
from scheduler.domain.errors import Conflict, InvalidInput
from scheduler.durable import durable_file
from scheduler.store.dump import database_kind, dump_of, knows_schema, schema_revision
from scheduler.store.objects import ObjectStore

if TYPE_CHECKING:
    from scheduler.backup.archive import BackupReader
    from scheduler.settings import StoreSettings


async def restore(settings: StoreSettings, backup: Path) -> BackupManifest:
    """Fill an empty installation from a backup; `tandem up` on it goes on from there.

    Every file is checked against its digest before the first is written. The database comes last,
    so that what a crash leaves behind is no installation.

    Args:
        settings: where database, objects and pepper shall be; nothing may be there.
        backup: a folder or tar file that `back_up` made.

    Raises:
        Conflict: something is there already.
        InvalidInput: no backup, a damaged one, one of another kind of database, or one whose
            schema is newer than this version's.
    """
    with open_backup(backup) as reader:
        manifest = _manifest(reader)
        _check_readable(manifest, settings)
        await _check_empty(settings)
        await asyncio.to_thread(_verify, reader, manifest)
        await _fill(settings, reader, manifest)
    return manifest


def _manifest(reader: BackupReader) -> BackupManifest:
    with reader.open(MANIFEST) as file:
        content = file.read()
    try:
        return BackupManifest.model_validate_json(content)
    except ValidationError:
        raise InvalidInput(f"The backup's {MANIFEST} is not one that this version reads.") from None


def _check_readable(manifest: BackupManifest, settings: StoreSettings) -> None:
    kind = database_kind(settings.database_url)
    if manifest.database != kind:
        raise InvalidInput(
            f"The backup is of a {manifest.database} database and cannot become a {kind} one."
        )
    if not knows_schema(manifest.schema_revision):
        raise InvalidInput(
            f"The backup was made by Tandem {manifest.tandem_version}, whose schema "
            f"{manifest.schema_revision} is newer than this version's; install that version."
        )


async def _check_empty(settings: StoreSettings) -> None:
    """Refuse a place that holds anything of an installation.

    Raises:
        Conflict: it does.
    """
    if settings.key_pepper_file.exists():
        raise Conflict(f"{settings.key_pepper_file} exists; restore into an empty place.")
    if await ObjectStore(settings.object_store_url).keys():
        raise Conflict(f"{settings.object_store_url} holds objects; restore into an empty place.")
    if await schema_revision(settings.database_url) is not None:
        raise Conflict("The database is in use; restore into an empty one.")


def _verify(reader: BackupReader, manifest: BackupManifest) -> None:
    """Read everything once.

    Raises:
        InvalidInput: a file is missing or is not what it was.
    """
    for name, member in manifest.members.items():
        with reader.open(name) as file:
            if digest_of(file) != member:
                raise _damaged(name)


async def _fill(settings: StoreSettings, reader: BackupReader, manifest: BackupManifest) -> None:
    objects = ObjectStore(settings.object_store_url)
    for key in manifest.object_keys():
        with reader.open(OBJECTS + key) as file:
            source = DigestReader(file)
            await objects.put_stream(cast("BinaryIO", source), key)
        if source.member() != manifest.members[OBJECTS + key]:
            raise _damaged(OBJECTS + key)
    with reader.open(PEPPER) as file, durable_file(settings.key_pepper_file) as target:
        shutil.copyfileobj(file, target)
    with tempfile.TemporaryDirectory(dir=settings.data_dir) as scratch:
        dump = Path(scratch) / DATABASE
        with reader.open(DATABASE) as file, dump.open("wb") as target:
            shutil.copyfileobj(file, target)
        await asyncio.to_thread(dump_of(settings.database_url).load, dump)


def _damaged(name: str) -> InvalidInput:
    return InvalidInput(f"The backup is damaged: {name} is not what was saved.")
