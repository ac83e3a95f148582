"""Data sets, adapters and checkpoints as objects, through fsspec: `file://`, `s3://`."""

from __future__ import annotations

import asyncio
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from scheduler.durable import durable_file

COPY_BYTES = 2**20


class ObjectStore:
    """A tree of immutable objects under one URL.

    Keys are made by the service (`datasets/JOB/train.bin`), never taken from a caller: relative,
    slash-separated, without `..`. A bad key is a ValueError. A missing object is a
    FileNotFoundError. On `file://` every write is temp + fsync + rename.

    Args:
        url: `file:///DIR` or any fsspec URL.
    """

    def __init__(self, url: str) -> None:
        # Other processes write and delete here too: a listing of before says nothing about now.
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._root = root.rstrip("/")

    async def make_root(self) -> None:
        """Make the folder or the bucket that holds everything, if it is not there."""
        await asyncio.to_thread(self._fs.makedirs, self._root, exist_ok=True)

    async def put_file(self, local: Path, key: str) -> None:
        """Copy a local file to `key`."""
        await asyncio.to_thread(self._put_file, local, self._path(key))

    async def get_file(self, key: str, local: Path) -> None:
        """Copy an object to a local file; parents are made, the file appears complete or not."""
        await asyncio.to_thread(self._get_file, self._path(key), local)

    async def put_dir(self, local: Path, key: str, *, last: str | None = "manifest.json") -> None:
        """Copy all files below a folder; the file `last`, if there, is written last."""
        await asyncio.to_thread(self._put_dir, local, self._path(key), last)

    async def get_dir(self, key: str, local: Path) -> None:
        """Copy all objects below `key` into a folder.

        Raises:
            FileNotFoundError: there is none.
        """
        await asyncio.to_thread(self._get_dir, self._path(key), local)

    async def put_bytes(self, key: str, content: bytes) -> None:
        """Write an object."""
        await asyncio.to_thread(self._put_bytes, self._path(key), content)

    async def get_bytes(self, key: str) -> bytes:
        """Read an object."""
        content: bytes = await asyncio.to_thread(self._fs.cat_file, self._path(key))
        return content

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading; blocking, so use it in a thread or a task process."""
        file: BinaryIO = self._fs.open(self._path(key), "rb")
        return file

    async def put_stream(self, source: BinaryIO, key: str) -> None:
        """Copy an open file to `key`."""
        await asyncio.to_thread(self._put_stream, source, self._path(key))

    async def keys(self) -> set[str]:
        """Keys of all objects, without those that are still being written."""
        paths = await asyncio.to_thread(self._fs.find, self._root)
        start = len(self._root) + 1
        return {path[start:] for path in paths if not PurePosixPath(path).name.startswith(".")}

    async def delete(self, key: str) -> None:
        """Remove an object, or all below a prefix; a missing one is fine."""
        await asyncio.to_thread(self._delete, self._path(key))

    async def exists(self, key: str) -> bool:
        """Whether there is an object, or a folder with one, at `key`."""
        return bool(await asyncio.to_thread(self._fs.exists, self._path(key)))

    def _path(self, key: str) -> str:
        parts = key.split("/")
        if not all(parts) or not key.isprintable() or {".", ".."} & set(parts) or "\\" in key:
            raise ValueError(f"{key!r} is no object key; use relative parts joined by '/'.")
        return f"{self._root}/{key}"

    @property
    def _is_local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def _put_file(self, local: Path, path: str) -> None:
        if not self._is_local:
            self._fs.put_file(str(local), path)
            return
        with local.open("rb") as source:
            self._put_stream(source, path)

    def _put_stream(self, source: BinaryIO, path: str) -> None:
        writing = durable_file(Path(path)) if self._is_local else self._fs.open(path, "wb")
        with writing as target:
            _copy(source, target)

    def _get_file(self, path: str, local: Path) -> None:
        with self._fs.open(path, "rb") as source, durable_file(local) as target:
            _copy(source, target)

    def _put_bytes(self, path: str, content: bytes) -> None:
        if not self._is_local:
            self._fs.pipe_file(path, content)
            return
        with durable_file(Path(path)) as target:
            target.write(content)

    def _put_dir(self, local: Path, path: str, last: str | None) -> None:
        files = sorted(file for file in local.rglob("*") if file.is_file())
        files.sort(key=lambda file: str(file.relative_to(local)) == last)
        for file in files:
            self._put_file(file, f"{path}/{file.relative_to(local).as_posix()}")

    def _get_dir(self, path: str, local: Path) -> None:
        found = [name for name in self._fs.find(path) if name != path]
        if not found:
            raise FileNotFoundError(path)
        for name in found:
            self._get_file(name, local / PurePosixPath(name).relative_to(path))

    def _delete(self, path: str) -> None:
        try:
            self._fs.rm(path, recursive=True)
        except FileNotFoundError:
            return


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(COPY_BYTES):
        target.write(chunk)
