"""A stored version -> the tar of a folder that peft loads, streamed once its files are checked."""

from __future__ import annotations

import asyncio
import hashlib
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from scheduler.domain.adapter import CONFIG_FILE, MANIFEST_FILE, TENSORS_FILE, AdapterManifest
from scheduler.domain.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scheduler.store.adapters import AdapterVersion
    from scheduler.store.objects import ObjectStore

CHUNK_BYTES = 1 << 20
_EXPORTED = (CONFIG_FILE, TENSORS_FILE)


class AdapterExport:
    """The files of one version on this machine, for as long as an answer takes.

    Args:
        scratch: holds the files; the caller removes it.
        name: the folder inside the tar.
    """

    def __init__(self, scratch: tempfile.TemporaryDirectory[str], name: str) -> None:
        self.name = name
        self._scratch = scratch
        self._folder = Path(scratch.name)

    @property
    def num_bytes(self) -> int:
        """Length of the tar."""
        blocks = sum(1 + -(-self._size(name) // tarfile.BLOCKSIZE) for name in _EXPORTED)
        return (blocks + 2) * tarfile.BLOCKSIZE

    def chunks(self) -> Iterator[bytes]:
        """The tar's bytes; blocking."""
        for name in _EXPORTED:
            member = tarfile.TarInfo(f"{self.name}/{name}")
            member.size = self._size(name)
            yield member.tobuf(tarfile.USTAR_FORMAT)
            with (self._folder / name).open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    yield chunk
            yield bytes(-member.size % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def close(self) -> None:
        """Remove the files."""
        self._scratch.cleanup()

    def _size(self, name: str) -> int:
        return (self._folder / name).stat().st_size


async def open_export(
    adapter_id: str, version: AdapterVersion, objects: ObjectStore
) -> AdapterExport:
    """Fetch the version and compare it with its digest.

    Raises:
        NotFound: its files are gone or damaged.
    """
    scratch = tempfile.TemporaryDirectory(prefix="tandem-export-")
    try:
        await objects.get_dir(version.uri, Path(scratch.name))
        sound = await asyncio.to_thread(_is_sound, Path(scratch.name), version.digest)
    except FileNotFoundError:
        sound = False
    except BaseException:
        scratch.cleanup()
        raise
    if not sound:
        scratch.cleanup()
        raise NotFound(
            f"The files of version {version.version} of adapter {adapter_id!r} are gone or damaged."
        )
    return AdapterExport(scratch, f"{adapter_id}-v{version.version}")


def _is_sound(folder: Path, digest: str) -> bool:
    try:
        manifest = AdapterManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    except ValueError:
        return False
    actual = {}
    for name in manifest.files:
        with (folder / Path(name).name).open("rb") as file:
            actual[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return actual == manifest.files and manifest.digest == digest
