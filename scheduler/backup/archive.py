"""Where a backup lies: a folder, or one tar file. Neither is there before it is whole."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast

from scheduler.backup.manifest import MANIFEST
from scheduler.domain.errors import Conflict, InvalidInput
from scheduler.durable import durable_file, sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

TAR_SUFFIX = ".tar"


class BackupWriter(Protocol):
    """Takes the files of a backup, each once."""

    def add(self, name: str, source: BinaryIO, size_bytes: int) -> None:
        """Copy a file in.

        Raises:
            OSError: it is shorter than it should be, or there is no room.
        """


class BackupReader(Protocol):
    """Hands out the files of a backup."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading.

        Raises:
            InvalidInput: it is not there.
        """


@contextmanager
def new_backup(out: Path) -> Iterator[BackupWriter]:
    """A backup that is at `out` after the block: a tar file if its name ends so, else a folder.

    Raises:
        Conflict: something is there already.
    """
    if out.exists():
        raise Conflict(f"{out} exists; a backup never replaces anything, so choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == TAR_SUFFIX:
        with durable_file(out) as file, tarfile.open(fileobj=file, mode="w") as tar:
            yield _TarWriter(tar)
        return
    unfinished = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, unfinished)
        yield _FolderWriter(unfinished)
        unfinished.rename(out)
        undo.pop_all()
    sync_folder(out.parent)


@contextmanager
def open_backup(path: Path) -> Iterator[BackupReader]:
    """The backup at `path`.

    Raises:
        InvalidInput: there is none.
    """
    if path.is_dir():
        yield _FolderReader(path)
        return
    if not path.is_file() or not tarfile.is_tarfile(path):
        raise InvalidInput(f"{path} is no backup; name what `tandem backup` made.")
    with tarfile.open(path) as tar:
        yield _TarReader(tar)


class _FolderWriter:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, source: BinaryIO, size_bytes: int) -> None:
        with durable_file(self._folder / name) as target:
            shutil.copyfileobj(source, target)
            if target.tell() != size_bytes:
                raise OSError(f"{name} has {target.tell()} bytes, not {size_bytes}")


class _TarWriter:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, source: BinaryIO, size_bytes: int) -> None:
        member = tarfile.TarInfo(name)
        member.size, member.mode = size_bytes, 0o600
        self._tar.addfile(member, source)


class _FolderReader:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, name: str) -> BinaryIO:
        try:
            return (self._folder / name).open("rb")
        except FileNotFoundError:
            raise _missing(name) from None


class _TarReader:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def open(self, name: str) -> BinaryIO:
        try:
            file = self._tar.extractfile(name)
        except KeyError:
            file = None
        if file is None:
            raise _missing(name)
        return cast("io.BufferedReader", file)


def _missing(name: str) -> InvalidInput:
    what = "is no backup, or one that was cut off" if name == MANIFEST else "is damaged"
    return InvalidInput(f"The backup {what}: {name} is missing.")
