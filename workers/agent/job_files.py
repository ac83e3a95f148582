"""A job's files between the object store and this machine's scratch folder."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.messages import CheckpointWritten, StartJob
from scheduler.store.leases import CheckpointCommit
from workers.agent.adapter_cache import MANIFEST

if TYPE_CHECKING:
    from scheduler.store.leases import CheckpointRef, LeasedJob
    from scheduler.store.objects import ObjectStore

ADAPTER = "adapter"  # folder of the peft artefact inside a checkpoint
UPLOAD_TRIES = 3
RETRY_PAUSE_S = 1.0

log = structlog.get_logger(__name__)


class JobFiles:
    """Brings a leased job's files here, and its checkpoints back.

    Keys carry the lease's epoch, so the late upload of a worker that lost its lease can never
    touch what its successor has committed.

    Args:
        objects: where data sets, checkpoints and adapters are.
        folder: scratch of this job and epoch; removed at the end.
    """

    def __init__(self, objects: ObjectStore, leased: LeasedJob, folder: Path) -> None:
        self._objects = objects
        self._leased = leased
        self._folder = folder
        self._version = leased.next_version

    async def bring(self) -> StartJob:
        """Download data sets and checkpoint; the order that starts the job.

        Raises:
            OSError: a file is missing, damaged, or cannot be stored.
        """
        leased = self._leased
        train = await self._data_set(leased.train_key, "train.bin")
        valid = await self._data_set(leased.valid_key, "valid.bin") if leased.valid_key else None
        resume_from = await self._checkpoint(leased.checkpoint) if leased.checkpoint else None
        return StartJob(
            job_id=leased.job_id,
            tenant_id=leased.tenant_id,
            epoch=leased.epoch,
            spec=leased.spec,
            train_path=str(train),
            valid_path=str(valid) if valid else None,
            checkpoint_root=str(self._folder / "checkpoints"),
            resume_from=str(resume_from) if resume_from else None,
            tenant_weight=leased.tenant_weight,
        )

    async def store(self, written: CheckpointWritten) -> CheckpointCommit:
        """Upload a checkpoint and its adapter; what is to be committed in SQL.

        Raises:
            OSError: the object store refused it, several times.
        """
        for attempt in range(1, UPLOAD_TRIES):
            try:
                return await self._store(written)
            except OSError as error:
                log.warning("upload_failed", job_id=written.job_id, error=str(error))
                await asyncio.sleep(attempt * RETRY_PAUSE_S)
        return await self._store(written)

    async def committed(self, written: CheckpointWritten, stale_keys: list[str]) -> None:
        """Tidy up: the local copy, and training states that SQL has forgotten."""
        self._version += 1
        await asyncio.to_thread(shutil.rmtree, written.path, ignore_errors=True)
        for key in stale_keys:
            await self._objects.delete(key)

    async def remove(self) -> None:
        """Remove the scratch folder."""
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _store(self, written: CheckpointWritten) -> CheckpointCommit:
        leased, folder = self._leased, Path(written.path)
        adapter_uri = f"adapters/{leased.adapter_id}/{leased.epoch}/v{self._version}"
        await self._objects.put_dir(folder / ADAPTER, adapter_uri)
        manifest = await asyncio.to_thread((folder / ADAPTER / MANIFEST).read_bytes)
        uri, manifest_sha256 = None, None
        if not written.final:
            uri = f"checkpoints/{leased.job_id}/{leased.epoch}/step-{written.step}"
            manifest_sha256 = await asyncio.to_thread(_sha256, folder / MANIFEST)
            await self._objects.put_dir(folder, uri)
        return CheckpointCommit(
            step=written.step,
            uri=uri,
            manifest_sha256=manifest_sha256,
            adapter_uri=adapter_uri,
            adapter_digest=written.adapter_digest,
            num_bytes=written.num_bytes,
            trained_tokens=written.trained_tokens,
            base_digest=AdapterManifest.model_validate_json(manifest).base_digest,
            metrics=dict(written.metrics),
        )

    async def _data_set(self, key: str, name: str) -> Path:
        local = self._folder / name
        await self._objects.get_file(key, local)
        return local

    async def _checkpoint(self, ref: CheckpointRef) -> Path:
        local = self._folder / "resume" / f"step-{ref.step}"
        await self._objects.get_dir(ref.uri, local)
        if await asyncio.to_thread(_sha256, local / MANIFEST) != ref.manifest_sha256:
            raise OSError(f"the manifest of {ref.uri} is not the one that was committed")
        return local


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
