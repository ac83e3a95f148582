"""Files that are either whole or absent after a crash."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def durable_file(path: Path) -> Iterator[BinaryIO]:
    """A file that is at `path`, complete and on disk, after the block, or else not at all.

    Its folder is made if it is not there. An exception in the block leaves nothing behind; a kill
    may leave a hidden file beside `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    temporary = Path(name)
    with ExitStack() as undo:
        undo.callback(temporary.unlink)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        undo.pop_all()
    sync_folder(path.parent)


def write_durably(path: Path, content: bytes) -> None:
    """Put `content` at `path`, all of it or nothing."""
    with durable_file(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries, renames among them, to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
