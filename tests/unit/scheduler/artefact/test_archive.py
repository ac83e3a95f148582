"""Archives of strangers give two known files, or nothing."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from typing import TYPE_CHECKING

import pytest

from scheduler.artefact.archive import unpack
from scheduler.artefact.intake import Intake
from scheduler.domain.adapter import CONFIG_FILE, TENSORS_FILE
from scheduler.domain.errors import InvalidInput, PayloadTooLarge
from tests.unit.scheduler.artefact.archives import Members, make_tar, make_tar_gz, make_zip
from tests.unit.scheduler.artefact.peft_folder import good_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LIMIT = 8 << 20
MEMORY_LIMIT = 8 << 20


def members(folder: str = "") -> Members:
    return [(folder + name, content) for name, content in good_files().items()]


def take(tmp_path: Path, archive: bytes, limit: int = LIMIT) -> dict[str, bytes]:
    """Unpack and return what lies in the folder."""
    (tmp_path / "archive").write_bytes(archive)
    folder = tmp_path / "into"
    folder.mkdir()
    unpack(tmp_path / "archive", Intake(folder, limit))
    return {path.name: path.read_bytes() for path in folder.rglob("*")}


def refused(tmp_path: Path, archive: bytes, limit: int = LIMIT) -> str:
    """The reason; little memory and no more disk than allowed were used, in one folder only."""
    tracemalloc.start()
    try:
        with pytest.raises((InvalidInput, PayloadTooLarge)) as caught:
            take(tmp_path, archive, limit)
        assert tracemalloc.get_traced_memory()[1] < len(archive) + MEMORY_LIMIT
    finally:
        tracemalloc.stop()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in written} <= {"archive", CONFIG_FILE, TENSORS_FILE}
    assert all(path.parent in (tmp_path, tmp_path / "into") for path in written)
    assert sum(path.stat().st_size for path in written) <= len(archive) + limit + (1 << 18)
    return caught.value.message


MAKERS: dict[str, Callable[[Members], bytes]] = {
    "zip": make_zip, "tar": make_tar, "tar.gz": make_tar_gz,
}  # fmt: skip


@pytest.mark.parametrize("folder", ["", "adapter/", "./"])
@pytest.mark.parametrize("kind", MAKERS)
def test_both_files_come_out(tmp_path: Path, kind: str, folder: str) -> None:
    assert take(tmp_path, MAKERS[kind](members(folder))) == good_files()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_readme_is_passed_over(tmp_path: Path, kind: str) -> None:
    assert take(tmp_path, MAKERS[kind]([("README.md", b"# hi"), *members()])) == good_files()


def test_what_the_usual_programs_write_is_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, content in members():
        (source / name).write_bytes(content)
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        archive.add(source, "adapter")  # a folder, pax headers for fractions of seconds
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for path in (source, *source.iterdir()):
            packed.write(path, path.relative_to(tmp_path))

    for number, name in enumerate(("a.tgz", "a.zip")):
        folder = tmp_path / str(number)
        folder.mkdir()
        unpack(tmp_path / name, Intake(folder, LIMIT))
        assert {path.name for path in folder.iterdir()} == set(good_files())


ODD_NAMES = [
    "../adapter_config.json",
    "a/../adapter_config.json",
    "/adapter_config.json",
    "/etc/passwd",
    "a/b/adapter_config.json",
    "..\\adapter_config.json",
    "C:\\adapter_config.json",
    "adapter_model.bin",
    "adapter_model.pt",
    "adapter_model.safetensors.py",
    "__init__.py",
    "manifest.json",
    "adapter_config.json\x07",
    "x" * 90,
]


@pytest.mark.parametrize("name", ODD_NAMES)
@pytest.mark.parametrize("kind", MAKERS)
def test_a_member_that_has_no_place_is_refused(tmp_path: Path, kind: str, name: str) -> None:
    refused(tmp_path, MAKERS[kind]([*members(), (name, b"x")]))


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("extra", ["adapter_config.json", "other/adapter_config.json"])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_that_comes_twice_is_refused(tmp_path: Path, kind: str, extra: str) -> None:
    assert "twice" in refused(tmp_path, MAKERS[kind]([*members(), (extra, b"{}")]))


@pytest.mark.parametrize("left_out", [0, 1])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_missing_file_is_named(tmp_path: Path, kind: str, left_out: int) -> None:
    content = members()
    name, _ = content.pop(left_out)

    assert name in refused(tmp_path, MAKERS[kind](content))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_bomb_is_stopped_while_it_expands(tmp_path: Path, kind: str) -> None:
    bomb = [*members()[:1], (TENSORS_FILE, b"\0" * (64 << 20))]

    refused(tmp_path, MAKERS[kind](bomb))


@pytest.mark.parametrize("kind", MAKERS)
def test_too_large_an_adapter_is_refused_at_its_limit(tmp_path: Path, kind: str) -> None:
    with pytest.raises(PayloadTooLarge):
        take(tmp_path, MAKERS[kind](members()), limit=600)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_configuration_of_megabytes_is_refused(tmp_path: Path, kind: str) -> None:
    content = [(CONFIG_FILE, random.Random(0).randbytes(2 << 20)), members()[1]]

    assert CONFIG_FILE in refused(tmp_path, MAKERS[kind](content))


@pytest.mark.parametrize("kind", MAKERS)
def test_many_members_are_refused(tmp_path: Path, kind: str) -> None:
    content = [("README.md", b"")] * 20
    if kind == "zip":
        content = [(f"{n}/README.md", b"") for n in range(20)]

    assert "members" in refused(tmp_path, MAKERS[kind](content))


@pytest.mark.parametrize("kind", MAKERS)
def test_a_damaged_or_cut_archive_is_refused(tmp_path: Path, kind: str) -> None:
    whole = MAKERS[kind](members())
    for number, cut in enumerate((whole[:900], whole[:700], whole[:3], b"")):
        (tmp_path / str(number)).mkdir()
        refused(tmp_path / str(number), cut)
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    if kind != "tar":  # plain tar has no checksum of its content; the tensors' check sees it
        (tmp_path / "flipped").mkdir()
        refused(tmp_path / "flipped", bytes(flipped))


@pytest.mark.parametrize("content", [b"\x80\x04pickle", b"Rar!\x1a\x07", b"7z\xbc\xaf", b"{}"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "neither" in refused(tmp_path, content)


class TestTar:
    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
    )
    def test_links_and_devices_are_refused(self, tmp_path: Path, kind: bytes) -> None:
        archive = make_tar([(TENSORS_FILE, b"")], type=kind, linkname="/etc/passwd")

        assert "link" in refused(tmp_path, archive)

    def test_a_sparse_file_is_refused(self, tmp_path: Path) -> None:
        refused(tmp_path, make_tar([(TENSORS_FILE, b"x")], type=tarfile.GNUTYPE_SPARSE))

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    def test_an_extended_header_of_gigabytes_is_refused(self, tmp_path: Path, kind: bytes) -> None:
        member = tarfile.TarInfo("x")
        member.type, member.size = kind, 8 << 30

        refused(tmp_path, member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)

    def test_an_extended_header_cannot_rename_a_member(self, tmp_path: Path) -> None:
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for name, data in members():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                member.pax_headers = {"path": "../../evil", "linkpath": "/etc/passwd"}
                archive.addfile(member, io.BytesIO(data))

        assert take(tmp_path, target.getvalue()) == good_files()

    def test_a_size_beyond_the_archive_is_refused(self, tmp_path: Path) -> None:
        member = tarfile.TarInfo(TENSORS_FILE)
        member.size = 1 << 40

        refused(tmp_path, member.tobuf(tarfile.GNU_FORMAT) + b"\0" * 4096)

    def test_bytes_behind_the_end_are_refused(self, tmp_path: Path) -> None:
        assert "follows" in refused(tmp_path, make_tar(members()) + b"more")

    def test_a_second_gzip_member_is_refused(self, tmp_path: Path) -> None:
        refused(tmp_path, make_tar_gz(members()) + gzip.compress(b"more"))


class TestZip:
    def test_a_link_is_refused(self, tmp_path: Path) -> None:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as archive:
            info = zipfile.ZipInfo(TENSORS_FILE)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")

        assert "link" in refused(tmp_path, target.getvalue())

    def test_an_encrypted_member_is_refused(self, tmp_path: Path) -> None:
        archive = bytearray(make_zip(members()))
        at = archive.index(b"PK\x01\x02")
        archive[at + 8] |= 1

        assert "encrypted" in refused(tmp_path, bytes(archive))

    def test_another_compression_is_refused(self, tmp_path: Path) -> None:
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as archive:
            for name, data in members():
                archive.writestr(name, data)

        assert "deflated" in refused(tmp_path, target.getvalue())

    def test_a_size_that_lies_is_caught(self, tmp_path: Path) -> None:
        archive = bytearray(make_zip([(TENSORS_FILE, b"\0" * (4 << 20)), members()[0]]))
        for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
            at = archive.index(signature)
            archive[at + offset : at + offset + 4] = struct.pack("<I", 1000)

        refused(tmp_path, bytes(archive))

    def test_a_huge_directory_is_refused_before_it_is_read(self, tmp_path: Path) -> None:
        entry = b"PK\x01\x02" + b"\0" * 42
        directory = entry * 300_000
        end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0, 0, len(directory), 0, 0)
        archive = b"PK\x03\x04" + directory + end

        assert "directory" in refused(tmp_path, archive)

    def test_members_that_share_bytes_are_bounded(self, tmp_path: Path) -> None:
        """Fifield's bomb: many entries over one kernel; here both are the same local file."""
        archive = bytearray(make_zip(members()))
        second = archive.rindex(b"PK\x01\x02")
        archive[second + 42 : second + 46] = struct.pack("<I", 0)

        refused(tmp_path, bytes(archive))

    def test_zip64_and_comments_are_refused(self, tmp_path: Path) -> None:
        plain = make_zip(members())
        wide = plain[:-22] + b"PK\x06\x07" + b"\0" * 16 + plain[-22:]
        for number, (archive, reason) in enumerate(
            ((wide, "zip64"), (plain[:-2] + b"\x05\x00hello", "comment"))
        ):
            (tmp_path / str(number)).mkdir()
            assert reason in refused(tmp_path / str(number), archive)


def test_a_deflate_stream_without_end_is_cut_at_the_ratio(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    head = tarfile.TarInfo(TENSORS_FILE)
    head.size = 1 << 30
    packed = packer.compress(head.tobuf(tarfile.GNU_FORMAT))
    packed += b"".join(packer.compress(b"\0" * (1 << 20)) for _ in range(300)) + packer.flush()

    reason = refused(tmp_path, packed, limit=1 << 30)

    assert "100 times" in reason
