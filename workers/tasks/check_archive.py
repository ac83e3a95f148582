"""An archive of a stranger -> a version's folder, or the reason why not.

    python -m workers.tasks.check_archive --base DIR --base-digest SHA --max-rank N --max-bytes N \
        --folder DIR

The folder holds the archive alone; configuration and manifest are written beside it. Whatever a
header claims, parameters are only made for a rank that the base model's workers take.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from scheduler.domain.adapter import ARCHIVE_FILE
from scheduler.domain.errors import InvalidInput
from workers.adapter_archive import read_archive
from workers.adapter_folder import complete_archive_folder
from workers.architecture import decoder_config
from workers.hf_config import read_hf_config
from workers.tasks.program import run_program

FLOAT_BYTES = 4
OPTIONS = {"base": Path, "base-digest": str, "max-rank": int, "max-bytes": int, "folder": Path}


def check_archive(
    folder: Path, base: Path, base_digest: str, max_rank: int, max_bytes: int
) -> None:
    """Read all of the archive, and complete its folder.

    Args:
        folder: holds the archive.
        base: the base model's folder.
        base_digest: of its weights.
        max_rank: the largest that workers take.
        max_bytes: most bytes of the parameters in float32.

    Raises:
        InvalidInput: the archive is torn or hostile, or belongs to something else.
    """
    archive = read_archive(folder / ARCHIVE_FILE, decoder_config(read_hf_config(base)))
    if archive.header.base_digest != base_digest:
        raise InvalidInput(
            f"The archive belongs to other weights than this base model's "
            f"(of {archive.header.base_model[:64]!r})."
        )
    if archive.method.rank > max_rank:
        raise InvalidInput(
            f"The adapter has rank {archive.method.rank}; the workers' limit is {max_rank}."
        )
    if FLOAT_BYTES * archive.size.num_parameters > max_bytes:
        raise InvalidInput(f"The adapter has more than {max_bytes} bytes once it is expanded.")
    archive.adapter()
    complete_archive_folder(folder, archive)


def _run(given: Namespace) -> None:
    check_archive(given.folder, given.base, given.base_digest, given.max_rank, given.max_bytes)


if __name__ == "__main__":
    sys.exit(run_program(_run, OPTIONS))
