"""Adapters travel between peft and us in both directions; hostile files are refused."""

from __future__ import annotations

import json
import pickle
import struct
from typing import TYPE_CHECKING, Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.errors import InvalidInput
from tests.unit.workers.packed_run import random_lora
from tests.unit.workers.tiny_models import CPU, FAMILIES, VOCAB_SIZE, TinyModel, make_model
from workers.adapter_arena import AdapterArena
from workers.adapter_file import (
    CONFIG,
    TENSORS,
    BaseIdentity,
    LoadedAdapter,
    read_adapter,
    write_adapter,
)
from workers.lowered_adapter import LoweredAdapter
from workers.model import MODULE_PATHS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"  # peft still asks for it
)
BASE = BaseIdentity("base", "digest")
MODULES = ("q_proj", "v_proj", "down_proj")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_model("qwen3", tmp_path_factory.mktemp("model"))


@pytest.fixture
def artefact(tiny: TinyModel, tmp_path: Path) -> Path:
    method, params = random_lora(tiny.decoder.config, 1, 3, MODULES)
    write_adapter(tmp_path / "adapter", method, params, BASE, 7, {"train_loss": 1.5})
    return tmp_path / "adapter"


def test_peft_computes_with_our_artefact_what_we_compute(
    tiny: TinyModel, artefact: Path, tmp_path: Path
) -> None:
    merged = make_model("qwen3", tmp_path / "again").oracle
    token_ids = torch.arange(20)[None] % VOCAB_SIZE
    method, params = random_lora(tiny.decoder.config, 1, 3, MODULES)
    with torch.no_grad():
        for name, module in merged.named_modules():
            key = f"base_model.model.{name}.lora_A.weight"
            if key in params:
                b = params[key.replace("lora_A", "lora_B")]
                module.get_parameter("weight").add_(
                    method.scale(key.removesuffix(".lora_A.weight")) * b @ params[key]
                )
        want = merged(token_ids).logits

        peft = PeftModel.from_pretrained(tiny.oracle, str(artefact))
        got = peft(token_ids).logits
        peft.unload()

    assert float((got - want).abs().max()) < 1e-4


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_we_read_what_peft_saved(family: str, use_rslora: bool, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "model")
    config = LoraConfig(
        r=5, lora_alpha=8, target_modules=list(MODULE_PATHS), use_rslora=use_rslora,
        init_lora_weights=False,
    )  # fmt: skip
    peft = get_peft_model(model.oracle, config)
    peft.save_pretrained(str(tmp_path / "saved"))

    adapter = read_adapter(tmp_path / "saved", model.decoder.config)

    assert adapter.method.rank == 5
    assert adapter.method.modules == frozenset(MODULE_PATHS)
    for name, tensor in adapter.params.items():
        parameter = peft.get_parameter(name.replace(".weight", ".default.weight"))
        assert torch.equal(tensor, parameter)


def test_what_is_written_is_read_back_bit_for_bit_and_the_manifest_says_what_it_is(
    tiny: TinyModel, artefact: Path
) -> None:
    _, params = random_lora(tiny.decoder.config, 1, 3, MODULES)

    adapter = read_adapter(artefact, tiny.decoder.config)
    manifest = AdapterManifest.model_validate_json((artefact / "manifest.json").read_bytes())

    assert all(torch.equal(adapter.params[name], params[name]) for name in params)
    assert manifest.base_digest == "digest"
    assert manifest.step == 7
    assert manifest.num_bytes == sum((artefact / name).stat().st_size for name in manifest.files)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / TENSORS)
    edit(tensors)
    save_file(tensors, folder / TENSORS)


def first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


def set_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors)][0, 0] = float("nan")


def set_infinite(tensors: dict[str, torch.Tensor]) -> None:
    tensors[first(tensors)][0, 0] = float("-inf")


def widen(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors)
    tensors[name] = torch.zeros(tensors[name].shape[0] + 1, tensors[name].shape[1])


def make_integers(tensors: dict[str, torch.Tensor]) -> None:
    name = first(tensors)
    tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int32)


def add_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.weight"] = torch.zeros(1)


def drop_tensor(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[first(tensors)]


@pytest.mark.parametrize(
    "edit", [set_nan, set_infinite, widen, make_integers, add_tensor, drop_tensor]
)
def test_tensors_that_do_not_fit_are_refused(
    tiny: TinyModel, artefact: Path, edit: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    edit_tensors(artefact, edit)

    with pytest.raises(InvalidInput):
        read_adapter(artefact, tiny.decoder.config)


def header(length: int, body: bytes) -> bytes:
    return struct.pack("<Q", length) + body


LYING_OFFSETS = json.dumps({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 1 << 40]}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 7,
        pickle.dumps({"weights": [1, 2, 3]}),
        header(1 << 62, b"{}"),
        header(1 << 21, b" " * (1 << 21)),
        header(2, b"[]"),
        header(900_000, b"[" * 900_000),
        header(len(LYING_OFFSETS), LYING_OFFSETS.encode()),
        header(5, b"\xff\xfe{}}"),
    ],
    ids=["empty", "short", "pickle", "huge", "long", "list", "deep", "offsets", "bytes"],
)
def test_files_that_are_no_safetensors_are_refused(
    tiny: TinyModel, artefact: Path, content: bytes
) -> None:
    (artefact / TENSORS).write_bytes(content)

    with pytest.raises(InvalidInput):
        read_adapter(artefact, tiny.decoder.config)


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0},
        {"r": 10**9},
        {"r": None},
        {"r": 4},
        {"lora_alpha": -1},
        {"lora_alpha": float("nan")},
        {"target_modules": []},
        {"target_modules": "all-linear"},
        {"target_modules": ["../../etc/passwd"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": [["q_proj"]]},
        {"peft_type": "POLY"},
        {"peft_type": None},
        {"use_dora": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 4}},
        {"rank_pattern": {"q_(proj|x)": 2}},
        {"alpha_pattern": {"q_proj": 0}},
        {"modules_to_save": ["lm_head"]},
        {"layers_to_transform": [0]},
        {"layer_replication": [[0, 2]]},
        {"alora_invocation_tokens": [1]},
        {"use_qalora": True},
        {"lora_bias": True},
    ],
    ids=str,
)
def test_configurations_that_we_cannot_compute_are_refused(
    tiny: TinyModel, artefact: Path, changes: dict[str, Any]
) -> None:
    edit_config(artefact, **changes)

    with pytest.raises(InvalidInput):
        read_adapter(artefact, tiny.decoder.config)


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 200_000, b"\xff", b" " * (2 << 20) + b"{}"])
def test_a_configuration_that_is_no_object_is_refused(
    tiny: TinyModel, artefact: Path, content: bytes
) -> None:
    (artefact / CONFIG).write_bytes(content)

    with pytest.raises(InvalidInput):
        read_adapter(artefact, tiny.decoder.config)


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_missing_file_is_refused(tiny: TinyModel, artefact: Path, name: str) -> None:
    (artefact / name).unlink()

    with pytest.raises(InvalidInput):
        read_adapter(artefact, tiny.decoder.config)


def test_weights_that_overflow_the_arena_are_refused(tiny: TinyModel) -> None:
    config = tiny.decoder.config
    arena = AdapterArena(config, 16, torch.float16, CPU)
    method, params = random_lora(config, 1, 4, MODULES, scale=1e5)

    with pytest.raises(InvalidInput, match="overflow"):
        LoweredAdapter.of(LoadedAdapter(method, params), arena)
