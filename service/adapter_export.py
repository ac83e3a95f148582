"""A stored version -> the files of a folder that peft loads, or that transformers loads."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from scheduler.domain.adapter import (
    ARCHIVE_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    TENSORS_FILE,
    AdapterManifest,
)
from scheduler.domain.errors import Conflict, NotFound
from service.tar_members import TarMember

if TYPE_CHECKING:
    from scheduler.store.adapter_orders import Order
    from scheduler.store.adapters import AdapterVersion
    from scheduler.store.objects import ObjectStore
    from service.coded_adapters import CodedAdapters


class AdapterExport:
    """The files of one version on this machine, for as long as an answer takes.

    Args:
        scratch: holds the files; `close` removes it.
        name: the folder inside the tar.
    """

    def __init__(self, scratch: tempfile.TemporaryDirectory[str], name: str) -> None:
        self.name = name
        self._scratch = scratch
        self._folder = Path(scratch.name) / "stored"

    @property
    def archive(self) -> Path:
        """The coded adapter.

        Raises:
            Conflict: the version is stored as plain tensors.
        """
        path = self._folder / ARCHIVE_FILE
        if not path.is_file():
            raise Conflict(
                f"{self.name} is not coded; POST /v1/adapters/ID/versions/N/compress makes a "
                "version of it that is."
            )
        return path

    async def expand(self, coded: CodedAdapters, base: Path | None) -> None:
        """Make a folder that peft loads where the version is stored coded.

        Args:
            coded: decodes it.
            base: folder of the base model; None where it is not served any more.

        Raises:
            InvalidInput: this machine cannot decode it.
            Conflict: there is no base model to decode it with.
            Overloaded: decoding broke off.
        """
        if not (self._folder / ARCHIVE_FILE).is_file():
            return
        if base is None:
            raise Conflict(
                f"{self.name} is coded, and its base model, which expanding it needs, is not "
                "served any more; format=compeft exports it as it is."
            )
        folder, self._folder = self._folder, Path(self._scratch.name) / "expanded"
        await coded.expand(folder, base, self._folder)

    @property
    def members(self) -> list[TarMember]:
        """Configuration and tensors."""
        paths = [self._folder / name for name in (CONFIG_FILE, TENSORS_FILE)]
        return [
            TarMember(f"{self.name}/{path.name}", path.stat().st_size, partial(_open, path))
            for path in paths
        ]

    def close(self) -> None:
        """Remove the files."""
        self._scratch.cleanup()


def merged_members(order: Order, objects: ObjectStore) -> list[TarMember]:
    """The files of a merged model, read from the object store as they are sent."""
    folder = f"{order.adapter_id}-v{order.version}-merged"
    return [
        TarMember(f"{folder}/{name}", num_bytes, partial(objects.open, f"{order.uri}/{name}"))
        for name, num_bytes in order.files.items()
    ]


async def open_export(
    adapter_id: str, version: AdapterVersion, objects: ObjectStore
) -> AdapterExport:
    """Fetch the version and compare it with its digest.

    Raises:
        NotFound: its files are gone or damaged.
    """
    scratch = tempfile.TemporaryDirectory(prefix="tandem-export-")
    stored = Path(scratch.name) / "stored"
    with ExitStack() as undo:
        undo.callback(scratch.cleanup)
        if not await _fetch(version, objects, stored):
            raise NotFound(
                f"The files of version {version.version} of adapter {adapter_id!r} "
                "are gone or damaged."
            )
        undo.pop_all()
    return AdapterExport(scratch, f"{adapter_id}-v{version.version}")


async def _fetch(version: AdapterVersion, objects: ObjectStore, folder: Path) -> bool:
    """Whether the version is there and as its digest says."""
    try:
        await objects.get_dir(version.uri, folder)
        return await asyncio.to_thread(_is_sound, folder, version.digest)
    except FileNotFoundError:
        return False


def _open(path: Path) -> BinaryIO:
    return path.open("rb")


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
