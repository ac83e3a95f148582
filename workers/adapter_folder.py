"""A version's folder, whichever way its parameters are stored: as tensors, or as an archive.

    adapter_config.json   what peft would read
    adapter_model.safetensors, or adapter_model.tandem
    manifest.json         last

The configuration beside an archive follows from the archive's header, so equal archives make
folders of equal digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from scheduler.domain.adapter import (
    ARCHIVE_FILE,
    CONFIG_FILE,
    MANIFEST_FILE,
    AdapterManifest,
    content_digest,
)
from scheduler.durable import write_durably
from workers.adapter_archive import Archive, read_archive
from workers.adapter_file import LoadedAdapter, read_adapter
from workers.model import DecoderConfig


def read_folder(folder: Path, model: DecoderConfig) -> LoadedAdapter:
    """The adapter of a version's folder.

    Raises:
        InvalidInput: a file is missing or hostile, or does not fit the base model.
    """
    archive = folder / ARCHIVE_FILE
    return (
        read_archive(archive, model).adapter() if archive.is_file() else read_adapter(folder, model)
    )


def write_archive_folder(folder: Path, content: bytes, model: DecoderConfig) -> Archive:
    """Write an archive's bytes as a version's folder, after reading them as a stranger's.

    Raises:
        InvalidInput: they are no archive of an adapter of this base model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / ARCHIVE_FILE, content)
    archive = read_archive(folder / ARCHIVE_FILE, model)
    archive.adapter()
    complete_archive_folder(folder, archive)
    return archive


def complete_archive_folder(folder: Path, archive: Archive) -> AdapterManifest:
    """Write configuration and manifest beside an archive that lies in the folder."""
    header = archive.header
    config = archive.method.peft_config() | {"base_model_name_or_path": header.base_model}
    text = json.dumps(config, indent=2, sort_keys=True).encode()
    write_durably(folder / CONFIG_FILE, text)
    with (folder / ARCHIVE_FILE).open("rb") as file:
        archive_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    files = {CONFIG_FILE: hashlib.sha256(text).hexdigest(), ARCHIVE_FILE: archive_sha256}
    manifest = AdapterManifest(
        base_model=header.base_model,
        base_digest=header.base_digest,
        method=header.method,
        method_config=archive.method.config.model_dump(mode="json"),
        digest=content_digest(files),
        num_bytes=archive.size.total + len(text),
        files=files,
        metrics=header.metrics,
        init_seed=header.init_seed,
    )
    write_durably(folder / MANIFEST_FILE, manifest.model_dump_json(indent=2).encode())
    return manifest
