"""Adapters on their way from disk to a slot: what arrives, in what order, and how many at once."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.adapter import ARCHIVE_FILE, AdapterKey, AdapterRef
from scheduler.domain.messages import Generate
from scheduler.domain.request import RequestBody, WeightedModel
from tests.unit.workers.tiny_adapters import make_lora, tiny_config
from workers.adapter_archive import pack_archive
from workers.adapter_arena import AdapterArena
from workers.adapter_file import TENSORS, BaseIdentity, LoadedAdapter, write_adapter
from workers.adapter_loader import MAX_AHEAD, AdapterLoader, Load
from workers.adapter_pool import AdapterPool
from workers.adapter_shelf import AdapterShelf
from workers.codecs import CODECS
from workers.compact_adapter import CompactAdapter
from workers.lowered_adapter import LoweredAdapter

if TYPE_CHECKING:
    from pathlib import Path

BASE = BaseIdentity("tiny", "d" * 64)
CONFIG = tiny_config()
RAM = 1 << 24


def arena() -> AdapterArena:
    return AdapterArena(CONFIG, 32, torch.float32, torch.device("cpu"))


def plain(folder: Path, seed: int = 1) -> LoadedAdapter:
    adapter = make_lora(seed)
    write_adapter(folder, adapter.method, adapter.params, BASE, 0, {})
    return adapter


def coded(folder: Path, codec: str, seed: int = 1) -> LoadedAdapter:
    """An artefact that is an archive; returns what it holds."""
    folder.mkdir(parents=True)
    coder = CODECS[codec](CODECS[codec].Config())
    adapter = make_lora(seed, init_seed=7)
    (folder / ARCHIVE_FILE).write_bytes(pack_archive(adapter, coder, BASE, init_seed=7))
    return adapter


def order(
    folder: Path, name: str = "r", tenant_id: str = "t", *, is_pinned: bool = False
) -> Generate:
    ref = AdapterRef(adapter_id="a", version=1, digest=folder.name, uri="none", is_pinned=is_pinned)
    body = RequestBody(
        request_id=name, tenant_id=tenant_id, base_model="tiny", adapter=ref, prompt_token_ids=(1,)
    )
    return Generate(request=body, reply_to="gateway", adapter_dirs={ref.digest: str(folder)})


def ask(loader: AdapterLoader, wanted: Generate, arena: AdapterArena) -> Load:
    (adapter,) = wanted.request.adapters
    return loader.ask(wanted, adapter, CONFIG, arena)


def arrived(loader: AdapterLoader, load: Load) -> Load:
    deadline_s = time.monotonic() + 20
    while load.adapter is None and load.error is None:
        assert time.monotonic() < deadline_s
        loader.collect()
        time.sleep(0.001)
    return load


def assert_equal(left: LoweredAdapter | None, right: LoweredAdapter) -> None:
    assert left is not None
    assert left.terms.keys() == right.terms.keys()
    for place, term in right.terms.items():
        for have, want in zip(left.terms[place].matrices(), term.matrices(), strict=True):
            assert torch.equal(have, want)


def test_a_plain_adapter_arrives_as_it_is_and_is_at_hand_the_next_time(tmp_path: Path) -> None:
    loader, space = AdapterLoader(AdapterShelf(RAM)), arena()
    adapter = plain(tmp_path / "a")

    first = arrived(loader, ask(loader, order(tmp_path / "a", "r1"), space))
    loader.leave(first, "r1")
    again = ask(loader, order(tmp_path / "a", "r2"), space)

    assert_equal(first.adapter, LoweredAdapter.of(adapter, space))
    assert again.adapter is first.adapter
    assert (first.was_shelved, again.was_shelved) == (False, True)


@pytest.mark.parametrize("codec", CODECS.names())
def test_an_archive_arrives_as_it_decodes_from_the_disk_and_from_memory(
    tmp_path: Path, codec: str
) -> None:
    shelf = AdapterShelf(RAM)
    loader, space = AdapterLoader(shelf), arena()
    coded(tmp_path / "a", codec)
    key = AdapterKey("tiny", "a")

    cold = arrived(loader, ask(loader, order(tmp_path / "a", "r1"), space))
    loader.leave(cold, "r1")
    (tmp_path / "a" / ARCHIVE_FILE).unlink()
    warm = arrived(loader, ask(loader, order(tmp_path / "a", "r2"), space))

    assert isinstance(shelf.get(key), CompactAdapter)
    assert cold.adapter is not None
    assert_equal(warm.adapter, cold.adapter)
    assert warm.was_shelved


def test_compeft_stays_in_memory_in_two_bits_a_number(tmp_path: Path) -> None:
    loader, space = AdapterLoader(AdapterShelf(RAM)), arena()
    adapter = coded(tmp_path / "a", "compeft")

    arrived(loader, ask(loader, order(tmp_path / "a"), space))

    shelved = loader.shelf.get(AdapterKey("tiny", "a"))
    assert shelved is not None
    num_parameters = sum(tensor.numel() for tensor in adapter.params.values())
    assert num_parameters / 4 <= shelved.num_bytes < 1.05 * num_parameters / 4


def test_a_damaged_adapter_is_an_error_each_time_and_stays_nowhere(tmp_path: Path) -> None:
    loader, space = AdapterLoader(AdapterShelf(RAM)), arena()
    plain(tmp_path / "a")
    whole = (tmp_path / "a" / TENSORS).read_bytes()
    (tmp_path / "a" / TENSORS).write_bytes(whole[:-9])

    torn = arrived(loader, ask(loader, order(tmp_path / "a", "r1"), space))
    loader.leave(torn, "r1")
    (tmp_path / "a" / TENSORS).write_bytes(whole)
    mended = arrived(loader, ask(loader, order(tmp_path / "a", "r2"), space))

    assert torn.error is not None
    assert "not a readable safetensors file" in torn.error.message
    assert mended.error is None


def test_requests_for_one_adapter_share_a_load(tmp_path: Path) -> None:
    loader, space = AdapterLoader(AdapterShelf(RAM)), arena()
    plain(tmp_path / "a")

    loads = [ask(loader, order(tmp_path / "a", f"r{i}"), space) for i in range(3)]
    arrived(loader, loads[0])

    assert loads[0] is loads[1] is loads[2]
    assert loads[0].waiters == {"r0", "r1", "r2"}


def test_only_so_many_are_brought_ahead_and_tenants_take_turns(tmp_path: Path) -> None:
    loader, space = AdapterLoader(AdapterShelf(0)), arena()
    plain(tmp_path / "a0")
    for i in range(1, MAX_AHEAD + 8):
        (tmp_path / f"a{i}").symlink_to(tmp_path / "a0")
    greedy = [
        ask(loader, order(tmp_path / f"a{i}", f"r{i}", "greedy"), space)
        for i in range(MAX_AHEAD + 7)
    ]
    modest = ask(loader, order(tmp_path / f"a{MAX_AHEAD + 7}", "m", "modest"), space)
    for load in greedy[:MAX_AHEAD]:
        arrived(loader, load)

    before = [load.arriving is not None for load in (*greedy, modest)]
    loader.leave(greedy[0], "r0")
    loader.leave(greedy[1], "r1")

    assert before == [True] * MAX_AHEAD + [False] * 8
    assert modest.arriving is not None
    assert sum(load.arriving is not None for load in greedy) == MAX_AHEAD + 1


def test_what_nobody_waits_for_any_more_is_not_read(tmp_path: Path) -> None:
    loader, space = AdapterLoader(AdapterShelf(0)), arena()
    plain(tmp_path / "a0")
    for i in range(1, MAX_AHEAD + 1):
        (tmp_path / f"a{i}").symlink_to(tmp_path / "a0")
    loads = [ask(loader, order(tmp_path / f"a{i}", f"r{i}"), space) for i in range(MAX_AHEAD + 1)]

    loader.leave(loads[-1], f"r{MAX_AHEAD}")
    arrived(loader, loads[0])
    loader.leave(loads[0], "r0")

    assert loads[-1].arriving is None


def test_a_pinned_adapter_keeps_its_slot_while_others_pass_through() -> None:
    space = arena()
    pool = AdapterPool(space, max_rank=8)
    lowered = [LoweredAdapter.of(make_lora(seed, rank=8), space) for seed in range(8)]

    pool.try_load("pinned", lowered[0], is_pinned=True)
    for seed in range(1, 8):
        pool.try_load(f"a{seed}", lowered[seed], is_pinned=False)

    assert "pinned" in pool.resident
    assert pool.num_evictions == 4


def test_pins_leave_the_others_half_of_the_slots() -> None:
    space = arena()
    pool = AdapterPool(space, max_rank=8)
    lowered = LoweredAdapter.of(make_lora(1, rank=8), space)
    for i in range(4):
        slot = pool.try_load(f"pinned{i}", lowered, is_pinned=True)
        assert slot is not None
        pool.acquire(slot)
        pool.release(slot)

    for i in range(3):
        pool.try_load(f"other{i}", lowered, is_pinned=False)

    assert {key for key in pool.resident if key.startswith("pinned")} == {"pinned2", "pinned3"}


def mixture(folders: list[Path], name: str) -> Generate:
    """A request of several adapters, by a tenant of its own."""
    refs = [AdapterRef(adapter_id="a", version=1, digest=f.name, uri="none") for f in folders]
    body = RequestBody(
        request_id=name,
        tenant_id=name,
        base_model="tiny",
        prompt_token_ids=(1,),
        mixture=tuple(WeightedModel(adapter=ref, weight=1.0) for ref in refs),
    )
    dirs = {folder.name: str(folder) for folder in folders}
    return Generate(request=body, reply_to="gateway", adapter_dirs=dirs)


def test_requests_of_several_adapters_do_not_keep_each_other_from_their_last(
    tmp_path: Path,
) -> None:
    loader, space = AdapterLoader(AdapterShelf(RAM)), arena()
    plain(tmp_path / "one")
    folders = [tmp_path / f"a{i}" for i in range(MAX_AHEAD + 3 * MAX_AHEAD // 2)]
    for folder in folders:
        shutil.copytree(tmp_path / "one", folder)
    singles, rest = folders[:MAX_AHEAD], folders[MAX_AHEAD:]
    filling = {f.name: ask(loader, order(f, f.name, f.name), space) for f in singles}
    waiting = {}
    for i in range(MAX_AHEAD // 2):
        wanted = mixture(rest[3 * i : 3 * i + 3], f"m{i}")
        waiting[f"m{i}"] = [
            loader.ask(wanted, ref, CONFIG, space) for ref in wanted.request.adapters
        ]
    for name, load in filling.items():
        loader.leave(arrived(loader, load), name)

    for name, loads in waiting.items():
        for load in loads:
            arrived(loader, load)
        for load in loads:
            loader.leave(load, name)

    assert not loader.is_busy
