"""An unreadable base model is refused with one sentence that names the file."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import pytest

from scheduler.base_model import find_base_model
from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from pathlib import Path

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "F32", "shape": [4], "data_offsets": [24, 40]},
}


def _weights(path: Path) -> None:
    header = json.dumps(HEADER).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "small-model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    _weights(folder / "model.safetensors")
    return folder


def test_a_bare_folder_is_served_under_its_own_name(folder: Path) -> None:
    model = find_base_model(str(folder))

    assert (model.id, model.folder, model.num_parameters) == ("small-model", folder, 10)


def test_an_id_may_be_given_before_the_folder(folder: Path) -> None:
    assert str(find_base_model(f"chat={folder}")) == f"chat={folder}"


def test_sharded_weights_are_counted_over_all_shards(folder: Path) -> None:
    _weights(folder / "model-1.safetensors")
    (folder / "model.safetensors").rename(folder / "model-2.safetensors")
    index = {"weight_map": {"x": "model-1.safetensors", "y": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    assert find_base_model(str(folder)).num_parameters == 20


@pytest.mark.parametrize(
    ("broken", "content", "words"),
    [
        ("config.json", None, "config.json cannot be read"),
        ("config.json", "{", "is not valid JSON"),
        ("config.json", "[]", "is not a JSON object"),
        ("config.json", '{"architectures": ["GPT2LMHeadModel"]}', "known are LlamaForCausalLM"),
        ("tokenizer.json", None, "has no tokenizer.json"),
        ("model.safetensors", None, "weights in other formats are not read"),
        ("model.safetensors", "not weights at all", "is not a safetensors file"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    folder: Path, broken: str, content: str | None, words: str
) -> None:
    (folder / broken).unlink()
    if content is not None:
        (folder / broken).write_text(content)

    with pytest.raises(InvalidInput, match="cannot be served") as refusal:
        find_base_model(str(folder))

    assert words in refusal.value.message
    assert "\n" not in refusal.value.message


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "part.safetensors"}}'
    )

    with pytest.raises(InvalidInput, match=r"missing: part\.safetensors"):
        find_base_model(str(folder))


def test_a_place_that_is_neither_folder_nor_hub_id_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no folder '/no/such/folder'"):
        find_base_model("/no/such/folder")


@pytest.mark.parametrize("model_id", ["ft:x", "a b", "", "-x"])
def test_ids_that_would_break_adapter_names_are_refused(folder: Path, model_id: str) -> None:
    with pytest.raises(InvalidInput, match="cannot be a model's id"):
        find_base_model(f"{model_id}={folder}")
