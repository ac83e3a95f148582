"""A version's folder that holds an archive -> a folder that peft loads.

python -m workers.tasks.expand_archive --base DIR --folder DIR --out DIR
"""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from scheduler.domain.adapter import ARCHIVE_FILE
from workers.adapter_archive import read_archive
from workers.adapter_file import BaseIdentity, write_adapter
from workers.architecture import decoder_config
from workers.hf_config import read_hf_config
from workers.tasks.program import run_program

OPTIONS = {"base": Path, "folder": Path, "out": Path}


def expand_archive(folder: Path, base: Path, out: Path) -> None:
    """Write the archive's parameters as float32 tensors.

    Raises:
        InvalidInput: the archive cannot be read.
    """
    archive = read_archive(folder / ARCHIVE_FILE, decoder_config(read_hf_config(base)))
    adapter, header = archive.adapter(), archive.header
    identity = BaseIdentity(header.base_model, header.base_digest)
    write_adapter(
        out, adapter.method, adapter.params, identity, 0, header.metrics, header.init_seed
    )


def _run(given: Namespace) -> None:
    expand_archive(given.folder, given.base, given.out)


if __name__ == "__main__":
    sys.exit(run_program(_run, OPTIONS))
