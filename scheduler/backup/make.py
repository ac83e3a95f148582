"""Makes a backup while the service runs."""

from __future__ import annotations

import asyncio
import io
import tempfile
import time
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from scheduler.backup.archive import new_backup
from scheduler.backup.digest import DigestReader
from scheduler.backup.manifest import DATABASE, MANIFEST, OBJECTS, PEPPER, BackupManifest, Member
from scheduler.domain.errors import Conflict, NotFound
from scheduler.store.dump import database_kind, dump_of, schema_revision
from scheduler.store.objects import ObjectStore

if TYPE_CHECKING:
    from scheduler.backup.archive import BackupWriter
    from scheduler.settings import StoreSettings

MAX_ROUNDS = 20


async def back_up(settings: StoreSettings, out: Path) -> BackupManifest:
    """Save an installation at `out`.

    The service may run: objects are written before the rows that name them and never change, so a
    dump of the database followed by a copy of all objects is whole, unless an object was deleted
    in between. Then a newer dump is taken, and only what is new since is copied. Objects deleted
    within the very seconds of their making and of the dump are not noticed.

    Args:
        settings: where database, objects and pepper are.
        out: a tar file if its name ends in `.tar`, else a folder; must not exist.

    Raises:
        Conflict: `out` exists, or objects are deleted faster than they can be copied.
        NotFound: there is no installation.
    """
    with new_backup(out) as writer, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        dump = Path(scratch) / DATABASE
        saving = _Saving(ObjectStore(settings.object_store_url), writer, Path(scratch))
        await saving.take(settings.database_url, dump)
        await saving.copy_file(DATABASE, dump)
        await saving.copy_file(PEPPER, settings.key_pepper_file)
        manifest = BackupManifest(
            created_at=int(time.time()),
            tandem_version=installed_version("tandem-llm"),
            database=database_kind(settings.database_url),
            schema_revision=await _revision(settings.database_url),
            members=saving.members,
        )
        content = manifest.model_dump_json(indent=1).encode()
        writer.add(MANIFEST, io.BytesIO(content), len(content))
    return manifest


class _Saving:
    """One backup while it is made.

    Args:
        objects: are copied.
        writer: takes the files.
        scratch: holds one object at a time.
    """

    def __init__(self, objects: ObjectStore, writer: BackupWriter, scratch: Path) -> None:
        self.members: dict[str, Member] = {}
        self._objects = objects
        self._writer = writer
        self._fetched = scratch / "object"
        self._copied: set[str] = set()

    async def take(self, url: str, dump: Path) -> None:
        """Dump the database to `dump` and copy every object that was there meanwhile.

        Raises:
            Conflict: some were always gone before they were copied.
        """
        for _ in range(MAX_ROUNDS):
            dump.unlink(missing_ok=True)
            before = await self._objects.keys()
            await asyncio.to_thread(dump_of(url).save, dump)
            after = await self._objects.keys()
            for key in sorted(after - self._copied):
                await self._copy_object(key)
            if before | after <= self._copied:
                return
        raise Conflict("Objects are deleted faster than they are copied; pause the running jobs.")

    async def copy_file(self, name: str, path: Path) -> None:
        """Copy a local file in."""
        with path.open("rb") as source:
            await self._add(name, source, path.stat().st_size)

    async def _copy_object(self, key: str) -> None:
        """Copy an object, unless it is deleted before it has been read to its end."""
        try:
            await self._objects.get_file(key, self._fetched)
        except FileNotFoundError:
            return
        await self.copy_file(OBJECTS + key, self._fetched)
        self._copied.add(key)

    async def _add(self, name: str, source: BinaryIO, size_bytes: int) -> None:
        reader = DigestReader(source)
        await asyncio.to_thread(self._writer.add, name, cast("BinaryIO", reader), size_bytes)
        self.members[name] = reader.member()


async def _revision(url: str) -> str:
    revision = await schema_revision(url)
    if revision is None:
        raise NotFound("The database is empty; there is nothing to back up.")
    return revision
