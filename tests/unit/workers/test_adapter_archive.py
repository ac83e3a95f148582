"""Archives: what was packed is read back; whatever else a file holds is refused at little cost."""

from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler.artefact.coded_file import MAX_HEADER_BYTES, PREFIX
from scheduler.domain.errors import InvalidInput
from tests.unit.workers.tiny_adapters import make_lora, tiny_config
from workers import adapter_archive
from workers.adapter_archive import (
    initial_params,
    pack_archive,
    read_archive,
    read_header,
)
from workers.adapter_file import BaseIdentity, LoadedAdapter
from workers.codec import Codec
from workers.codecs import CODECS

if TYPE_CHECKING:
    from pathlib import Path

BASE = BaseIdentity("base", "digest")
SEED = 7
LITTLE_BYTES = 2 << 20  # far below what hostile counts ask for


def make(name: str, **options: Any) -> Codec:
    return CODECS[name](CODECS[name].Config.model_validate(options))


@pytest.fixture(scope="module")
def adapter() -> LoadedAdapter:
    return make_lora(SEED)


def written(folder: Path, content: bytes) -> Path:
    path = folder / "adapter.tnd"
    path.write_bytes(content)
    return path


def resealed(content: bytes, header: bytes, payload: bytes) -> bytes:
    """An archive with a digest that fits: what an attacker would write."""
    magic = PREFIX.unpack_from(content)[0]
    digest = adapter_archive.hashlib.sha256(header + payload).digest()
    return PREFIX.pack(magic, digest, len(header)) + header + payload


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = PREFIX.unpack_from(content)[2]
    body = content[PREFIX.size :]
    return json.loads(body[:length]), body[length:]


def edited(content: bytes, **changes: Any) -> bytes:
    header, payload = parts(content)
    return resealed(content, json.dumps(header | changes).encode(), payload)


@pytest.mark.parametrize("name", CODECS.names())
def test_every_codec_goes_through_a_file(name: str, adapter: LoadedAdapter, tmp_path: Path) -> None:
    content = pack_archive(adapter, make(name), BASE, SEED, {"valid_loss": 0.5})

    archive = read_archive(written(tmp_path, content), tiny_config())
    decoded = archive.adapter()

    assert archive.header.metrics == {"valid_loss": 0.5}
    assert archive.header.base_digest == "digest"
    assert archive.size.total == len(content)
    assert decoded.method.config == adapter.method.config
    assert {n: t.shape for n, t in decoded.params.items()} == {
        n: t.shape for n, t in adapter.params.items()
    }


def test_an_uncompressed_archive_is_exact(adapter: LoadedAdapter, tmp_path: Path) -> None:
    content = pack_archive(adapter, make("none"), BASE, SEED)

    decoded = read_archive(written(tmp_path, content), tiny_config()).adapter()

    assert all(torch.equal(decoded.params[n], t) for n, t in adapter.params.items())


def test_a_known_seed_leaves_only_the_change_to_be_coded(
    adapter: LoadedAdapter, tmp_path: Path
) -> None:
    codec = make("compeft", density=0.5)
    errors = []
    for seed in (SEED, None):
        content = pack_archive(adapter, codec, BASE, seed)
        decoded = read_archive(written(tmp_path, content), tiny_config()).adapter()
        gaps = [decoded.params[n] - t for n, t in adapter.params.items() if "lora_A" in n]
        errors.append(float(torch.cat([gap.flatten() for gap in gaps]).norm()))

    assert errors[0] < 0.3 * errors[1]


def test_the_decoded_adapter_is_the_initial_value_plus_ternary_steps(
    adapter: LoadedAdapter, tmp_path: Path
) -> None:
    content = pack_archive(adapter, make("compeft", density=0.1), BASE, SEED)

    decoded = read_archive(written(tmp_path, content), tiny_config()).adapter()

    initial = initial_params(adapter.method, SEED)
    for name in (n for n in initial if "lora_B" in n):
        steps = (decoded.params[name] - initial[name]).abs().unique()
        assert len(steps) == 2  # 0 and the scale


def test_an_initial_value_that_differs_here_is_noticed(
    adapter: LoadedAdapter, tmp_path: Path
) -> None:
    content = pack_archive(adapter, make("compeft"), BASE, SEED)
    path = written(tmp_path, edited(content, init_seed=SEED + 1))

    with pytest.raises(InvalidInput, match="another initial value"):
        read_archive(path, tiny_config()).adapter()


def test_the_header_can_be_read_without_the_base_model(
    adapter: LoadedAdapter, tmp_path: Path
) -> None:
    content = pack_archive(adapter, make("int8"), BASE)

    header, size = read_header(written(tmp_path, content))

    assert header.codec == "int8"
    assert size.total == len(content)
    assert size.num_parameters == sum(t.numel() for t in adapter.params.values())
    assert size.ratio_to_16_bit == pytest.approx(2 * size.num_parameters / len(content))


@pytest.mark.parametrize("name", CODECS.names())
@given(cut=st.integers(1, 2000))
def test_a_torn_archive_is_refused(
    name: str, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = pack_archive(make_lora(SEED, modules=("v_proj",)), make(name), BASE, SEED)
    path = written(tmp_path_factory.mktemp("torn"), content[:-cut])

    with pytest.raises(InvalidInput):
        read_archive(path, tiny_config())


@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_an_altered_byte_is_noticed(
    place: int, flip: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(pack_archive(make_lora(SEED), make("compeft"), BASE, SEED))
    content[place % len(content)] ^= flip

    with pytest.raises(InvalidInput):
        read_archive(written(tmp_path_factory.mktemp("flip"), bytes(content)), tiny_config())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"codec": "zip"},
        {"codec": 5},
        {"codec_config": {"density": 0}},
        {"codec_config": {"density": float("nan")}},
        {"codec_config": {"shrink": 1}},
        {"method": "full"},
        {"method_config": {"rank": 10**9, "alpha": 1}},
        {"method_config": {"rank": 8, "alpha": 8, "target_modules": ["q_proj"]}},
        {"method_config": {"rank": 2, "alpha": 8, "target_modules": ["../x"]}},
        {"num_parameters": 10**15},
        {"num_parameters": -1},
        {"init_seed": -1},
        {"init_seed": 2**70},
        {"metrics": {"valid_loss": float("inf")}},
        {"metrics": "good"},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_lying_header_is_refused_even_with_a_fitting_digest(
    changes: dict[str, Any], adapter: LoadedAdapter, tmp_path: Path
) -> None:
    path = written(tmp_path, edited(pack_archive(adapter, make("compeft"), BASE, SEED), **changes))

    with pytest.raises(InvalidInput):
        read_archive(path, tiny_config()).adapter()


def huge_counts(payload: bytes) -> bytes:
    return payload[:8] + b"\xff" * 18 + payload[26:]


def nan_scales(payload: bytes) -> bytes:
    return np.float32("nan").tobytes() * 2 + payload[8:]


def nothing(payload: bytes) -> bytes:
    return payload[:0]


def noise(payload: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(payload))


@pytest.mark.parametrize("edit", [huge_counts, nan_scales, nothing, noise])
def test_a_hostile_payload_is_refused_at_little_memory(
    edit: Any, adapter: LoadedAdapter, tmp_path: Path
) -> None:
    content = pack_archive(adapter, make("compeft"), BASE, SEED)
    header, payload = parts(content)
    path = written(tmp_path, resealed(content, json.dumps(header).encode(), edit(payload)))
    tracemalloc.start()

    with pytest.raises(InvalidInput):
        read_archive(path, tiny_config()).adapter()

    assert tracemalloc.get_traced_memory()[1] < LITTLE_BYTES
    tracemalloc.stop()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"TNDMAD01",
        b"PK\x03\x04" * 20,
        PREFIX.pack(b"TNDMAD01", bytes(32), 2**32 - 1) + b"{}",
        PREFIX.pack(b"TNDMAD01", bytes(32), MAX_HEADER_BYTES) + b"[" * MAX_HEADER_BYTES,
        PREFIX.pack(b"TNDMAD01", bytes(32), 4) + b"\xff\xfe{}",
        PREFIX.pack(b"TNDMAD01", bytes(32), 2) + b"{}",
    ],
    ids=["empty", "short", "zip", "huge", "deep", "bytes", "bare"],
)
def test_files_that_are_no_archives_are_refused(content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, content)

    with pytest.raises(InvalidInput):
        read_archive(path, tiny_config())
    with pytest.raises(InvalidInput):
        read_header(path)


def test_a_huge_file_is_not_read(adapter: LoadedAdapter, tmp_path: Path) -> None:
    path = written(tmp_path, pack_archive(adapter, make("compeft"), BASE, SEED))
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: takes no disk
    tracemalloc.start()

    with pytest.raises(InvalidInput, match="longer than"):
        read_archive(path, tiny_config())

    assert tracemalloc.get_traced_memory()[1] < LITTLE_BYTES
    tracemalloc.stop()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="missing"):
        read_archive(tmp_path / "none.tnd", tiny_config())
    with pytest.raises(InvalidInput, match="missing"):
        read_header(tmp_path / "none.tnd")
