"""Data sets, adapters and checkpoints as objects, through fsspec: `file://`, `s3://`."""

from __future__ import annotations

from pathlib import Path


class ObjectStore:
    """A tree of immutable objects under one URL.

    Keys are made by the service (`datasets/JOB/train.bin`), never taken from a caller: relative,
    slash-separated, without `..`. A bad key is a ValueError. A missing object is a
    FileNotFoundError. On `file://` every write is temp + fsync + rename.

    Args:
        url: `file:///DIR` or any fsspec URL.
    """

    def __init__(self, url: str) -> None:
        raise NotImplementedError

    async def put_file(self, local: Path, key: str) -> None:
        """Copy a local file to `key`."""
        raise NotImplementedError

    async def get_file(self, key: str, local: Path) -> None:
        """Copy an object to a local file; parents are made, the file appears complete or not."""
        raise NotImplementedError

    async def put_dir(self, local: Path, key: str, *, last: str | None = "manifest.json") -> None:
        """Copy all files below a folder; the file `last`, if there, is written last."""
        raise NotImplementedError

    async def get_dir(self, key: str, local: Path) -> None:
        """Copy all objects below `key` into a folder."""
        raise NotImplementedError

    async def put_bytes(self, key: str, content: bytes) -> None:
        """Write an object."""
        raise NotImplementedError

    async def get_bytes(self, key: str) -> bytes:
        """Read an object."""
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Remove an object, or all below a prefix; a missing one is fine."""
        raise NotImplementedError

    async def exists(self, key: str) -> bool:
        """Whether there is an object, or a folder with one, at `key`."""
        raise NotImplementedError

    async def size(self, key: str) -> int:
        """Bytes of an object."""
        raise NotImplementedError
