"""A merged model is what peft merges, in shards that transformers loads, written in a stream."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from scheduler.domain.errors import InvalidInput
from scheduler.processes import EXIT_REFUSED
from tests.unit.workers.test_adapter_exchange import save_with_peft, token_ids
from tests.unit.workers.tiny_models import FAMILIES, make_model, save_oracle
from workers.tasks.merge_export import merge_export

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"  # peft still asks for it
)
SMALL_SHARD = 40_000  # bytes; every tiny model then takes several
ROUNDING = 1e-5  # float32 sums in another order


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("max_shard_bytes", [SMALL_SHARD, 1 << 30])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_pefts_merge(family: str, max_shard_bytes: int, tmp_path: Path) -> None:
    model = make_model(family, tmp_path / "base")
    save_with_peft(model, tmp_path / "adapter", use_rslora=family == "qwen2")
    peft = PeftModel.from_pretrained(model.oracle, str(tmp_path / "adapter"))
    want = peft.merge_and_unload()

    merge_export(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", max_shard_bytes)

    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    several = (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert several is (max_shard_bytes == SMALL_SHARD)
    for (name, merged), (_, oracle) in zip(
        got.named_parameters(), want.named_parameters(), strict=True
    ):
        assert torch.allclose(merged, oracle, atol=ROUNDING), name
    with torch.no_grad():
        assert torch.allclose(got(token_ids()).logits, want(token_ids()).logits, atol=1e-3)


def test_bf16_is_rounded_once_and_other_tensors_are_copied_bit_for_bit(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "base")
    save_with_peft(model, tmp_path / "adapter", target_modules=["q_proj"])
    path = tmp_path / "base" / "model.safetensors"
    before = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(before, path, {"format": "pt"})

    merge_export(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", SMALL_SHARD)

    after = tensors_of(tmp_path / "out")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        if "q_proj" not in name:
            assert torch.equal(tensor, before[name])
            continue
        a, b = (saved[f"base_model.model.{name[:-7]}.lora_{f}.weight"] for f in "AB")
        exact = before[name].float() + 8 / 5 * b @ a
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), exact, rtol=2**-8)


def test_no_shard_is_larger_than_asked_and_the_index_tells_all(tmp_path: Path) -> None:
    model = make_model("qwen3", tmp_path / "base")
    save_with_peft(model, tmp_path / "adapter")

    merge_export(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", SMALL_SHARD)

    out = tmp_path / "out"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = {path.name for path in out.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files
    tensors = tensors_of(out)
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for name in files:
        held = load_file(out / name)
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= SMALL_SHARD


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path) -> None:
    save_with_peft(make_model("qwen3", tmp_path / "other"), tmp_path / "adapter")
    save_oracle("llama", tmp_path / "base")

    with pytest.raises(InvalidInput):
        merge_export(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")

    assert {path.name for path in tmp_path.iterdir()} == {"other", "adapter", "base"}


def test_code_beside_the_base_is_not_exported(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "base")
    save_with_peft(model, tmp_path / "adapter")
    (tmp_path / "base" / "modeling_evil.py").write_text("raise SystemExit")
    (tmp_path / "base" / "tokenizer.json").write_text("{}")

    merge_export(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")

    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    }  # fmt: skip


def test_it_is_a_program(tmp_path: Path) -> None:
    model = make_model("llama", tmp_path / "base")
    save_with_peft(model, tmp_path / "adapter")
    command = [sys.executable, "-m", "workers.tasks.merge_export", "--base", str(tmp_path / "base")]

    good = subprocess.run(
        [*command, "--adapter", str(tmp_path / "adapter"), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    bad = subprocess.run(
        [*command, "--adapter", str(tmp_path / "base"), "--out", str(tmp_path / "bad")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (good.returncode, good.stderr) == (0, "")
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert bad.returncode == EXIT_REFUSED
    assert "adapter_config.json" in bad.stderr
