"""Exports of versions whose base model is gone, or whose decoder dies."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.adapter import ARCHIVE_FILE, CONFIG_FILE, TENSORS_FILE
from scheduler.domain.errors import Conflict, Overloaded
from service.adapter_export import AdapterExport
from service.coded_adapters import CodedAdapters

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stored() -> Iterator[AdapterExport]:
    """An export without files yet."""
    scratch = tempfile.TemporaryDirectory(prefix="tandem-export-")
    Path(scratch.name, "stored").mkdir()
    export = AdapterExport(scratch, "a-v1")
    yield export
    export.close()


def write(export: AdapterExport, *names: str) -> None:
    for name in names:
        (export._folder / name).write_bytes(b"{}")


async def test_a_plain_version_needs_no_base_model(stored: AdapterExport) -> None:
    write(stored, CONFIG_FILE, TENSORS_FILE)

    await stored.expand(CodedAdapters(), base=None)

    assert [member.num_bytes for member in stored.members] == [2, 2]


async def test_a_coded_version_cannot_be_expanded_without_its_base_model(
    stored: AdapterExport,
) -> None:
    write(stored, ARCHIVE_FILE)

    with pytest.raises(Conflict, match="not served any more; format=compeft"):
        await stored.expand(CodedAdapters(), base=None)

    assert stored.archive.is_file()


async def test_a_decoder_that_dies_may_be_tried_again(
    stored: AdapterExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(stored, ARCHIVE_FILE)
    monkeypatch.setattr("sys.executable", "/bin/false")

    with pytest.raises(Overloaded, match="try again"):
        await stored.expand(CodedAdapters(), base=Path("/"))
