"""Where files of a stranger land: two known names, counted byte by byte, in a folder of ours."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE
from scheduler.domain.errors import InvalidInput, PayloadTooLarge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MAX_CONFIG_BYTES = 1 << 20
MAX_MEMBERS = 8
_SKIPPED = "README.md"  # peft writes one into every folder; it is not even unpacked
_MAX_SHOWN_CHARS = 100


class Intake:
    """Takes in adapter_config.json and adapter_model.safetensors, each once.

    Args:
        folder: empty, the caller's, removed by it.
        max_bytes: of both files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._num_members = 0
        self._parents: set[PurePosixPath] = set()
        self._names: set[str] = set()

    def admit(self, written: str, *, is_folder: bool = False) -> str | None:
        """The file that a member is to become; None for one that is passed over.

        Raises:
            InvalidInput: it has no place here.
        """
        self._num_members += 1
        if self._num_members > MAX_MEMBERS:
            raise _refused(f"it has more than {MAX_MEMBERS} members")
        path = PurePosixPath(written)
        if not written.isprintable() or "\\" in written or ".." in path.parts:
            raise _refused(f"{_shown(written)} is no plain relative path")
        if path.is_absolute() or len(path.parts) > 2 - is_folder:
            raise _refused(f"{_shown(written)} lies too deep or is absolute")
        if is_folder or path.name == _SKIPPED:
            return None
        if path.name not in (CONFIG_FILE, TENSORS_FILE):
            raise _refused(
                f"{_shown(written)} is extra; only {CONFIG_FILE} and {TENSORS_FILE} are read, and "
                "weights as safetensors only"
            )
        self._parents.add(path.parent)
        if path.name in self._names or len(self._parents) > 1:
            raise _refused(f"{path.name} comes twice, or in another folder than its companion")
        self._names.add(path.name)
        return path.name

    def take(self, written: str, chunks: Iterable[bytes]) -> None:
        """Take in one member as it comes; one that is passed over is read and counted all the same.

        Raises:
            InvalidInput: it has no place here.
            PayloadTooLarge: both files together are too large.
        """
        name = self.admit(written)
        with ExitStack() as stack:
            target = stack.enter_context((self.folder / name).open("xb")) if name else None
            num_bytes = 0
            for chunk in chunks:
                self._count(len(chunk))
                num_bytes += len(chunk)
                if name == CONFIG_FILE and num_bytes > MAX_CONFIG_BYTES:
                    raise _refused(f"{CONFIG_FILE} has more than {MAX_CONFIG_BYTES} bytes")
                if target is not None:
                    target.write(chunk)

    def check_complete(self) -> None:
        """Raises InvalidInput when one of the two files is missing."""
        for name in (CONFIG_FILE, TENSORS_FILE):
            if name not in self._names:
                raise InvalidInput(f"The upload holds no {name}.", param="file")

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise PayloadTooLarge(
                f"The adapter's files have more than {self._max_bytes} bytes.", param="file"
            )


def _shown(written: str) -> str:
    return repr(written[:_MAX_SHOWN_CHARS])


def _refused(reason: str) -> InvalidInput:
    return InvalidInput(f"The upload is refused: {reason}.", param="file")
