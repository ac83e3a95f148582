from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import fsspec
import pytest

from scheduler.durable import durable_file
from scheduler.store.objects import ObjectStore

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """The local store, and a bucket of a server."""
    if request.param == "file":
        return ObjectStore(f"file://{tmp_path}/objects")
    return ObjectStore(request.getfixturevalue("bucket_url"))


async def test_bytes_come_back(store: ObjectStore) -> None:
    await store.put_bytes("a/b/c.bin", b"\x00hello")

    assert await store.get_bytes("a/b/c.bin") == b"\x00hello"
    with store.open("a/b/c.bin") as file:
        assert file.read() == b"\x00hello"


async def test_the_root_can_be_made_and_is_not_minded_if_there(store: ObjectStore) -> None:
    await store.put_bytes("k", b"kept")

    await store.make_root()

    assert await store.get_bytes("k") == b"kept"


async def test_a_new_bucket_is_made(bucket_url: str) -> None:
    store = ObjectStore(f"{bucket_url}-of-its-own")

    await store.make_root()
    await store.put_bytes("k", b"there")

    assert await store.get_bytes("k") == b"there"


async def test_what_another_process_writes_and_deletes_is_seen(bucket_url: str) -> None:
    store = ObjectStore(bucket_url)
    other, root = fsspec.core.url_to_fs(bucket_url, skip_instance_cache=True)
    await store.put_bytes("folder/mine", b"1")
    assert await store.keys() == {"folder/mine"}

    other.pipe_file(f"{root}/folder/theirs", b"2")
    assert await store.exists("folder/theirs")
    assert await store.keys() == {"folder/mine", "folder/theirs"}

    other.rm_file(f"{root}/folder/mine")
    assert not await store.exists("folder/mine")
    assert await store.keys() == {"folder/theirs"}


async def test_a_second_write_replaces_the_first(store: ObjectStore) -> None:
    await store.put_bytes("k", b"first, longer")
    await store.put_bytes("k", b"second")

    assert await store.get_bytes("k") == b"second"


async def test_files_come_back(store: ObjectStore, tmp_path: Path) -> None:
    content = os.urandom(3 * 2**20 + 1)
    (tmp_path / "up.bin").write_bytes(content)

    await store.put_file(tmp_path / "up.bin", "deep/er/file.bin")
    await store.get_file("deep/er/file.bin", tmp_path / "new" / "down.bin")

    assert (tmp_path / "new" / "down.bin").read_bytes() == content


async def test_folders_come_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "up" / "sub").mkdir(parents=True)
    for name in ("manifest.json", "a.bin", "sub/b.bin"):
        (tmp_path / "up" / name).write_text(name)

    await store.put_dir(tmp_path / "up", "ckpt/step-5")
    await store.get_dir("ckpt/step-5", tmp_path / "down")

    found = {str(file.relative_to(tmp_path / "down")): file.read_text()
             for file in (tmp_path / "down").rglob("*") if file.is_file()}  # fmt: skip
    assert found == {name: name for name in ("manifest.json", "a.bin", "sub/b.bin")}


async def test_a_neighbour_with_a_longer_name_is_not_part_of_a_folder(
    store: ObjectStore, tmp_path: Path
) -> None:
    await store.put_bytes("v1/a", b"mine")
    await store.put_bytes("v10/b", b"not mine")

    await store.get_dir("v1", tmp_path / "down")
    await store.delete("v1")

    assert [file.name for file in (tmp_path / "down").iterdir()] == ["a"]
    assert await store.exists("v10/b")


async def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch) -> None:
    store = ObjectStore(f"file://{tmp_path}/objects")
    (tmp_path / "up").mkdir()
    for name in ("zeta.bin", "manifest.json", "alpha.bin"):
        (tmp_path / "up" / name).write_text(name)
    order = []
    monkeypatch.setattr(store, "_put_file", lambda local, _path: order.append(local.name))

    await store.put_dir(tmp_path / "up", "ckpt")

    assert order == ["alpha.bin", "zeta.bin", "manifest.json"]


async def test_existence_covers_objects_and_folders(store: ObjectStore) -> None:
    await store.put_bytes("a/b", b"x")

    assert await store.exists("a/b")
    assert await store.exists("a")
    assert not await store.exists("a/c")


async def test_deleting_removes_objects_and_folders_and_forgives_absence(
    store: ObjectStore,
) -> None:
    for key in ("d/1", "d/2", "single"):
        await store.put_bytes(key, b"x")

    for key in ("d", "single", "never-there"):
        await store.delete(key)

    assert not await store.exists("d/1")
    assert not await store.exists("single")


async def test_what_is_missing_is_a_file_not_found(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await store.get_bytes("none")
    with pytest.raises(FileNotFoundError):
        await store.get_file("none", tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        await store.get_dir("none", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "key", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\\b", "a\x00b", "a\nb"]
)
async def test_a_key_that_could_leave_the_tree_is_refused(store: ObjectStore, key: str) -> None:
    with pytest.raises(ValueError, match="no object key"):
        await store.get_bytes(key)
    with pytest.raises(ValueError, match="no object key"):
        await store.delete(key)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old")

    def fail_halfway() -> None:
        with durable_file(tmp_path / "f") as file:
            file.write(b"half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail_halfway()

    assert (tmp_path / "f").read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["f"]


async def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}/objects")
    contents = [bytes([digit]) * 2**20 for digit in range(2)]
    await store.put_bytes("k", contents[0])

    async def write() -> None:
        for number in range(20):
            await store.put_bytes("k", contents[number % 2])

    writing = asyncio.create_task(write())
    while not writing.done():
        assert await store.get_bytes("k") in contents
    await writing
