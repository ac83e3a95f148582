"""What is no plain LoRA for this base is refused with a reason; what is becomes an artefact."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from scheduler.artefact.check import Base, check_artefact
from scheduler.artefact.tensor_file import MAX_HEADER_BYTES, MAX_TENSORS
from scheduler.domain.adapter import CONFIG_FILE, MANIFEST_FILE, TENSORS_FILE, AdapterManifest
from scheduler.domain.errors import InvalidInput
from tests.unit.scheduler.artefact.peft_folder import (
    CONFIG,
    LORA,
    good_files,
    good_tensors,
    make_base,
    safetensors,
    shapes,
    with_header,
    write_folder,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MEMORY_LIMIT = 24 << 20  # the largest header that is read, as Python objects
Tensors = dict[str, "np.ndarray[Any, Any]"]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return make_base(tmp_path / "base")


def refusal(folder: Path, base: Base) -> str:
    """The reason, found with little memory and without a manifest being written."""
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput) as caught:
            check_artefact(folder, base)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_LIMIT
    finally:
        tracemalloc.stop()
    assert not (folder / MANIFEST_FILE).exists()
    assert len(caught.value.message) < 600
    return caught.value.message


def test_a_good_folder_becomes_an_artefact_with_our_own_words(base: Base, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    config = LORA | {
        "auto_mapping": {"base_model_class": "X", "parent_library": "os"},
        "base_model_name_or_path": "/etc/passwd",
        "revision": "evil",
        "use_something_new": False,
        "init_lora_weights": "gaussian",
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config))

    manifest = check_artefact(folder, base)

    stored = json.loads((folder / CONFIG_FILE).read_text())
    assert stored["base_model_name_or_path"] == "m"
    assert not {"auto_mapping", "revision", "use_something_new"} & stored.keys()
    assert (stored["r"], stored["lora_alpha"]) == (2, 4)
    assert (manifest.base_digest, manifest.method) == ("base-digest", "lora")
    written = AdapterManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    assert written == manifest


def test_equal_content_has_an_equal_digest_and_other_content_another(
    base: Base, tmp_path: Path
) -> None:
    digests = []
    for number, change in enumerate((0.0, 0.0, 1.0)):
        tensors = good_tensors()
        tensors[next(iter(tensors))][0, 0] += change
        files = good_files() | {TENSORS_FILE: safetensors(tensors)}
        digests.append(check_artefact(write_folder(tmp_path / str(number), files), base).digest)

    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_half_precision_is_read(base: Base, tmp_path: Path, dtype: str) -> None:
    header, body = {}, b""
    for name, shape in shapes().items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body)] * 2}
        header[name]["data_offsets"] = [len(body), len(body) + size]
        body += b"\x80\x3b" * (size // 2)  # small and finite in both
    good = with_header(json.dumps(header).encode(), body)
    infinite = good[:-2] + (b"\x00\x7c" if dtype == "F16" else b"\x80\x7f")

    check_artefact(write_folder(tmp_path / "a", good_files() | {TENSORS_FILE: good}), base)
    bad = write_folder(tmp_path / "b", good_files() | {TENSORS_FILE: infinite})
    assert "NaN or infinite" in refusal(bad, base)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "shape"),
        ({"rank_pattern": {"(q|v)_proj": 4}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 4.0}}, "rank_pattern"),
        ({"rank_pattern": ["q_proj"]}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 2, "self_attn.q_proj": 2}}, "name the same projection"),
        ({"rank_pattern": {f"x{i}": 4 for i in range(2000)}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": -8}}, "alpha_pattern"),
        ({"alpha_pattern": {".": 8}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"exclude_modules": ["x"]}, "exclude_modules"),
        ({"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"init_lora_weights": ["olora"]}, "init_lora_weights"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"something_new": 1}, "something_new"),
        ({"something_new": "x" * 10_000}, "something_new"),
        ({"peft_type": "VERA"}, "'VERA'"),
        ({"peft_type": None}, "'NONE'"),
        ({"task_type": "SEQ_CLS"}, "'SEQ_CLS'"),
        ({"r": 0}, "rank"),
        ({"r": 257}, "rank"),
        ({"r": 10**30}, "rank"),
        ({"r": 2.0}, "rank"),
        ({"r": "2"}, "rank"),
        ({"r": True}, "rank"),
        ({"r": 65}, "limit is 64"),
        ({"lora_alpha": float("nan")}, "alpha"),
        ({"lora_alpha": float("inf")}, "alpha"),
        ({"lora_alpha": 0}, "alpha"),
        ({"use_rslora": "yes"}, "use_rslora"),
        ({"target_modules": "all-linear"}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": ["q_proj", "q_proj"]}, "target_modules"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["../../etc"]}, "q_proj"),
        ({"target_modules": ["q_proj"] * 100}, "target_modules"),
        ({"target_modules": [["q_proj"]]}, "target_modules"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_configuration_that_is_not_computed_is_refused_by_name(
    base: Base, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    files = good_files() | {CONFIG_FILE: json.dumps(LORA | changes).encode()}

    assert reason in refusal(write_folder(tmp_path / "a", files), base)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"[" * 200_000, b'{"r":' + b"9" * 10_000 + b"}", b"\xff{}"]
)
def test_a_configuration_that_is_no_object_is_refused(
    base: Base, tmp_path: Path, content: bytes
) -> None:
    folder = write_folder(tmp_path / "a", good_files() | {CONFIG_FILE: content})

    refusal(folder, base)


def _set(value: float) -> Callable[[Tensors], None]:
    def edit(tensors: Tensors) -> None:
        tensors[sorted(tensors)[-1]][-1, -1] = value

    return edit


def _widen(tensors: Tensors) -> None:
    tensors[sorted(tensors)[0]] = np.zeros((3, 8))


def _flatten(tensors: Tensors) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name].ravel()


def _drop(tensors: Tensors) -> None:
    del tensors[sorted(tensors)[0]]


def _add(tensors: Tensors) -> None:
    tensors["base_model.model.lm_head.weight"] = np.zeros(1)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_set(float("nan")), "NaN or infinite"),
        (_set(float("-inf")), "NaN or infinite"),
        (_widen, "has shape (3, 8)"),
        (_flatten, "has shape (16,)"),
        (_drop, "lacks 1 tensors"),
        (_add, "lm_head"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(
    base: Base, tmp_path: Path, edit: Callable[[Tensors], None], reason: str
) -> None:
    tensors = good_tensors()
    edit(tensors)
    files = good_files() | {TENSORS_FILE: safetensors(tensors)}

    assert reason in refusal(write_folder(tmp_path / "a", files), base)


def _entry(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1], "data_offsets": [start, end]} | changes


def _header(value: Any, body: bytes = b"") -> bytes:
    return with_header(json.dumps(value).encode(), body)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no safetensors"),
    "short": (b"\0" * 7, "no safetensors"),
    "pickle": (pickle.dumps({"weights": [1, 2]}), "no safetensors"),
    "zip of a pickle": (b"PK\x03\x04" + b"\0" * 100, "no safetensors"),
    "length beyond the file": (struct.pack("<Q", 1 << 62) + b"{}", "no safetensors"),
    "huge header": (with_header(b" " * (MAX_HEADER_BYTES + 1)), "header has"),
    "list": (_header([]), "not a JSON object"),
    "deep": (with_header(b"[" * 900_000), "not JSON"),
    "bytes": (with_header(b"\xff\xfe{}}"), "not JSON"),
    "long integer": (with_header(b'{"a":' + b"9" * 900_000 + b"}"), "not JSON"),
    "name twice": (
        with_header(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
                    b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
        "twice",
    ),
    "overlap": (_header({"a": _entry(0, 4), "b": _entry(2, 6)}, b"\0" * 6), "overlaps"),
    "same bytes": (_header({"a": _entry(0, 4), "b": _entry(0, 4)}, b"\0" * 4), "overlaps"),
    "gap": (_header({"a": _entry(4, 8)}, b"\0" * 8), "gap"),
    "beyond the end": (_header({"a": _entry(0, 4)}, b"\0" * 3), "length differ"),
    "trailing bytes": (_header({"a": _entry(0, 4)}, b"\0" * 5), "length differ"),
    "lying offsets": (_header({"a": _entry(0, 1 << 40)}), "offsets"),
    "endless shape": (_header({"a": _entry(0, 4, shape=[1 << 60])}, b"\0" * 4), "odd entry"),
    "product overflow": (_header({"a": _entry(0, 0, shape=[1 << 40] * 4)}), "offsets"),
    "many dimensions": (_header({"a": _entry(0, 4, shape=[1] * 300_000)}, b"\0" * 4), ""),
    "negative": (_header({"a": _entry(-4, 0)}), "odd entry"),
    "boolean": (_header({"a": _entry(0, 4, shape=[True])}, b"\0" * 4), "odd entry"),
    "float": (_header({"a": _entry(0, 4, shape=[1.0])}, b"\0" * 4), "odd entry"),
    "more keys": (_header({"a": _entry(0, 4, code="x")}, b"\0" * 4), "odd entry"),
    "no offsets": (_header({"a": {"dtype": "F32", "shape": [1]}}), "lacks"),
    "three offsets": (_header({"a": _entry(0, 4, data_offsets=[0, 1, 2])}), "lacks"),
    "no entry": (_header({"a": 1}), "lacks"),
    "integers": (_header({"a": _entry(0, 4, dtype="I32")}, b"\0" * 4), "dtype 'I32'"),
    "odd dtype": (_header({"a": _entry(0, 4, dtype=["F32"])}, b"\0" * 4), ""),
    "metadata": (_header({"__metadata__": {"a": [1]}}), "metadata"),
    "many tensors": (
        _header({str(n): _entry(0, 0, shape=[0]) for n in range(MAX_TENSORS + 1)}), "at most",
    ),
    "strange name": (_header({"x" * 100_000: _entry(0, 4)}, b"\0" * 4), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tensor_file_is_refused_with_little_memory(
    base: Base, tmp_path: Path, name: str
) -> None:
    content, reason = HOSTILE[name]
    folder = write_folder(tmp_path / "a", good_files() | {TENSORS_FILE: content})

    assert reason in refusal(folder, base)


def test_a_base_whose_config_tells_no_sizes_takes_no_adapters(base: Base, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "intermediate_size"}
    (base.folder / "config.json").write_text(json.dumps(config))

    assert "sizes" in refusal(write_folder(tmp_path / "a"), base)
