"""Adapters on this machine's disk, by content digest, checked against their manifests."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import uuid
from typing import TYPE_CHECKING

import structlog
from pydantic import ValidationError

from scheduler.domain.adapter import MANIFEST_FILE, AdapterManifest, AdapterRef
from scheduler.domain.adapter_tier import AdapterTier, Tier, told
from scheduler.domain.errors import DomainError, ModelNotFound

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.store.objects import ObjectStore

MANIFEST = MANIFEST_FILE

log = structlog.get_logger(__name__)


class CorruptAdapter(DomainError):
    """An artefact in the object store is not what its manifest says."""


class AdapterCache:
    """Fetches each adapter once, however many requests wait for it.

    Args:
        objects: where artefacts come from.
        folder: one sub-folder per content digest; may be shared by several workers.
        max_bytes: the least recently used adapters go when the cache is larger.
    """

    def __init__(self, objects: ObjectStore, folder: Path, max_bytes: int) -> None:
        self._objects = objects
        self._folder = folder
        self._max_bytes = max_bytes
        self._fetching: dict[str, asyncio.Task[Path]] = {}
        self._num_hits = 0
        self._num_misses = 0
        self._num_loads = 0
        self._num_evictions = 0

    def tier(self) -> AdapterTier:
        """What lies here, whoever brought it, and what this process has done about it."""
        digests = [folder.name for folder in self._folders()]
        return AdapterTier(
            tier=Tier.DISK,
            num_adapters=len(digests),
            num_hits=self._num_hits,
            num_misses=self._num_misses,
            num_loads=self._num_loads,
            num_evictions=self._num_evictions,
            digests=told(digests),
        )

    def cached(self, ref: AdapterRef) -> Path | None:
        """Return the adapter's folder if it is here already, and note its use."""
        folder = self._here(ref)
        self._num_hits += folder is not None
        self._num_misses += folder is None
        return folder

    async def fetch(self, ref: AdapterRef) -> Path:
        """Return the adapter's folder, fetched and checked.

        Raises:
            ModelNotFound: the object store no longer has it.
            CorruptAdapter: its files differ from its manifest.
            OSError: the object store or the disk fails.
        """
        if (folder := self._here(ref)) is not None:
            return folder
        task = self._fetching.get(ref.digest)
        if task is None:
            task = asyncio.create_task(self._fetch(ref))
            self._fetching[ref.digest] = task
            task.add_done_callback(lambda _: self._fetching.pop(ref.digest, None))
        return await asyncio.shield(task)  # one caller that leaves must not stop the others'

    def _here(self, ref: AdapterRef) -> Path | None:
        manifest = self._folder / ref.digest / MANIFEST
        try:
            os.utime(manifest)
        except FileNotFoundError:
            return None
        return manifest.parent

    async def _fetch(self, ref: AdapterRef) -> Path:
        arriving = self._folder / f".{uuid.uuid4().hex}"
        try:
            await self._objects.get_dir(ref.uri, arriving)
            await asyncio.to_thread(_verify, arriving, ref)
            folder = await asyncio.to_thread(_move_in, arriving, self._folder / ref.digest)
        except FileNotFoundError:
            raise ModelNotFound(f"Adapter {ref.adapter_id} is not there any more.") from None
        finally:
            await asyncio.to_thread(shutil.rmtree, arriving, ignore_errors=True)
        self._num_loads += 1
        await asyncio.to_thread(self._evict, ref.digest)
        log.info("adapter_fetched", adapter_id=ref.adapter_id, version=ref.version)
        return folder

    def _evict(self, newest: str) -> None:
        """Remove the least recently used adapters beyond the limit, never the newest."""
        total = 0
        for folder in self._folders():
            total += sum(file.stat().st_size for file in folder.iterdir())
            if total > self._max_bytes and folder.name != newest:
                shutil.rmtree(folder, ignore_errors=True)
                self._num_evictions += 1

    def _folders(self) -> list[Path]:
        """The adapters' folders, most recently used first; another worker may remove one."""
        used = [(_used_at(path), path.parent) for path in self._folder.glob(f"*/{MANIFEST}")]
        return [folder for _, folder in sorted(used, reverse=True)]


def _used_at(manifest: Path) -> float:
    try:
        return manifest.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _verify(folder: Path, ref: AdapterRef) -> None:
    """Compare every file with its manifest, and the manifest with what SQL says."""
    try:
        manifest = AdapterManifest.model_validate_json((folder / MANIFEST).read_bytes())
    except ValidationError:
        raise CorruptAdapter(f"Adapter {ref.adapter_id} has an unreadable manifest.") from None
    if manifest.digest != ref.digest:
        raise CorruptAdapter(f"Adapter {ref.adapter_id} has another digest than was published.")
    for name, expected in manifest.files.items():
        with (folder / name).open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            raise CorruptAdapter(f"{name} of adapter {ref.adapter_id} is damaged.")


def _move_in(arriving: Path, folder: Path) -> Path:
    """Rename into place; another worker that was faster has brought the same bytes."""
    try:
        arriving.rename(folder)
    except OSError:
        if not (folder / MANIFEST).is_file():
            raise
    return folder
