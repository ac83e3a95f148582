"""The folder that holds everything an embedded service knows."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

from scheduler.domain.errors import Conflict, NotFound
from scheduler.domain.service_class import BUILT_IN, check_announced
from scheduler.settings import StoreSettings
from scheduler.store.channel import ChannelDown
from scheduler.store.channels import connect_channel
from scheduler.store.database import Database, migrate
from scheduler.store.keys import Keys, load_pepper
from scheduler.store.tenants import Tenants

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from scheduler.domain.messages import WorkerInfo
    from scheduler.domain.tenant import Tenant

ADMIN_TENANT = "admin"
ADMIN_KEY_FILE = "admin.key"
REGISTRY_PATIENCE_S = 2.0  # a service that runs answers within milliseconds
_LOCK_FILE = "lock"


class AlreadyRunning(Conflict):
    """Another supervisor works in this folder."""


def store_settings(folder: Path) -> StoreSettings:
    """The store's settings for a data folder; TANDEM_* variables may move parts of it.

    The folder is made for this user only, if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return StoreSettings(data_dir=folder.resolve())


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder; the lock ends with this process, however it ends.

    Raises:
        AlreadyRunning: another process holds it.
    """
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(
                f"Another `tandem up` already uses {folder}; stop it or choose another --data."
            ) from None
        yield
    finally:
        os.close(descriptor)


class Accounts:
    """Tenants and keys of a data folder, for the command line."""

    def __init__(self, tenants: Tenants, keys: Keys) -> None:
        self.tenants = tenants
        self.keys = keys

    async def tenant(self, name: str, *, is_admin: bool = False) -> Tenant:
        """The tenant of that name, created if there is none."""
        try:
            return await self.tenants.get_by_name(name)
        except NotFound:
            return await self.tenants.create(name, is_admin=is_admin)

    async def first_admin_key(self, folder: Path) -> str | None:
        """Make the first admin key and leave it in the folder (mode 600); None if it is there."""
        path = folder / ADMIN_KEY_FILE
        if path.exists():
            return None
        tenant = await self.tenant(ADMIN_TENANT, is_admin=True)
        _, plaintext = await self.keys.create(tenant.id, "first admin key")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(plaintext + "\n")
        return plaintext


@asynccontextmanager
async def accounts(settings: StoreSettings) -> AsyncIterator[Accounts]:
    """Open the accounts of a data folder, its schema brought up to date."""
    await migrate(settings.database_url)
    database = Database(settings.database_url)
    try:
        yield Accounts(Tenants(database), Keys(database, load_pepper(settings.key_pepper_file)))
    finally:
        await database.close()


async def check_class_exists(settings: StoreSettings, name: str) -> None:
    """Refuse a service class that the running workers do not declare.

    Raises:
        InvalidInput: there is no such class.
        Overloaded: no worker is up to say.
    """
    if name in BUILT_IN:
        return
    workers: list[WorkerInfo] = []
    channel = connect_channel(settings.channel_url)
    try:
        with suppress(ChannelDown, TimeoutError):
            async with asyncio.timeout(REGISTRY_PATIENCE_S):
                workers = await channel.workers()
    finally:
        await channel.close()
    check_announced(name, [worker.capabilities.service_classes for worker in workers])
