"""Import of an adapter: its files checked against the base model, stored, and then recorded."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from scheduler.artefact.check import Base, check_artefact
from scheduler.domain.adapter import ARCHIVE_FILE
from scheduler.domain.errors import InvalidInput, Overloaded
from scheduler.store.adapter_imports import StoredVersion, import_key, new_adapter_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from scheduler.domain.adapter import AdapterManifest
    from scheduler.store.adapters import Adapter, AdapterVersion, TenantAdapters
    from scheduler.store.idempotency import IdempotencyKey
    from scheduler.store.objects import ObjectStore
    from service.adapter_upload import AdapterUpload
    from service.catalogue import Catalogue
    from service.coded_adapters import CodedAdapters
    from service.settings import ServiceSettings
    from service.worker_roster import WorkerRoster

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class AdapterImport:
    """Brings adapters of one tenant in.

    Args:
        adapters: the tenant's.
        objects: where artefacts lie.
        catalogue: the base models.
        roster: the workers, who know the base's digest and the largest rank.
        settings: limits and model folders.
        coded: reads adapters that a codec has made small.
    """

    def __init__(
        self,
        adapters: TenantAdapters,
        objects: ObjectStore,
        catalogue: Catalogue,
        roster: WorkerRoster,
        settings: ServiceSettings,
        coded: CodedAdapters,
    ) -> None:
        self._adapters = adapters
        self._objects = objects
        self._catalogue = catalogue
        self._roster = roster
        self._settings = settings
        self._coded = coded

    async def create(self, upload: AdapterUpload, key: IdempotencyKey | None) -> Adapter:
        """Make a new adapter with one version.

        Raises:
            InvalidInput: a field or a file is wrong.
            ModelNotFound: no such base model.
            Overloaded: no worker is up.
            QuotaExceeded: the tenant has imported too much already.
        """
        name, model = upload.fields.get("name", ""), upload.fields.get("model", "")
        if not _NAME.fullmatch(name):
            raise InvalidInput(
                "'name' must be 1 to 64 letters, digits and . _ -, not starting with a mark.",
                param="name",
            )
        self._catalogue.check_base(model)
        adapter_id = new_adapter_id()
        async with self._stored(upload, adapter_id, model) as imported:
            adapter = await self._adapters.create(
                adapter_id,
                name,
                model,
                imported,
                max_total_bytes=self._settings.max_imported_bytes,
                idempotency=key,
            )
        if adapter.id != adapter_id:
            await self._objects.delete(imported.uri)
        return adapter

    async def add_version(self, upload: AdapterUpload, adapter: Adapter) -> AdapterVersion:
        """Make the next version of an adapter. Raises what `create` does, and Conflict."""
        if unused := upload.fields.keys() & {"name", "model"}:
            raise InvalidInput(
                f"{min(unused)!r}: the adapter has one already; leave it out.", param=min(unused)
            )
        async with self._stored(upload, adapter.id, adapter.base_model) as imported:
            return await self._adapters.add_version(
                adapter.id, imported, max_total_bytes=self._settings.max_imported_bytes
            )

    @asynccontextmanager
    async def _stored(
        self, upload: AdapterUpload, adapter_id: str, model: str
    ) -> AsyncIterator[StoredVersion]:
        """The upload, checked and in the object store; taken back if it cannot be recorded."""
        manifest = await self._checked(upload.folder, self._base(model))
        uri = import_key(adapter_id)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._objects.delete, uri)
            await self._objects.put_dir(upload.folder, uri)
            yield StoredVersion(
                uri=uri,
                digest=manifest.digest,
                num_bytes=manifest.num_bytes,
                base_digest=manifest.base_digest,
                method=manifest.method,
            )
            undo.pop_all()

    async def _checked(self, folder: Path, base: Base) -> AdapterManifest:
        if (folder / ARCHIVE_FILE).is_file():
            return await self._coded.check(folder, base, self._settings.max_adapter_bytes)
        return await asyncio.to_thread(check_artefact, folder, base)

    def _base(self, model: str) -> Base:
        self._catalogue.check_base(model)
        held = self._roster.base(model)
        if held is None:
            raise Overloaded(
                f"No worker serves {model!r} at the moment, so nothing can be checked against it; "
                "try again in a few seconds.",
                param="model",
                retry_after_s=2,
            )
        ranks = [worker.capabilities.max_rank for worker in self._roster.holding(model)]
        return Base(
            model=model,
            digest=held.digest,
            folder=self._settings.model_dirs()[model],
            max_rank=max(ranks),
        )
