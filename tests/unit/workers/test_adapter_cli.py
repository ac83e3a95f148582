"""The adapter commands: folder to archive and back, merging, and refusals in one sentence."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.adapter import AdapterManifest
from tests.unit.workers.tiny_adapters import SHAPE, make_lora, tiny_config
from workers.adapter_cli import main
from workers.adapter_file import BaseIdentity, read_adapter, write_adapter

if TYPE_CHECKING:
    from pathlib import Path

SEED = 7


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE | {"model_type": "llama"}))
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    lora = make_lora(SEED)
    identity = BaseIdentity("base", "digest")
    write_adapter(tmp_path / "adapter", lora.method, lora.params, identity, 3, {}, SEED)
    return tmp_path / "adapter"


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_an_adapter_is_compressed_inspected_and_expanded(
    adapter: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, back = tmp_path / "a.tnd", tmp_path / "back"

    assert run("compress", adapter, "--out", archive, "--base-model", base, "--density", 0.1) == 0
    printed = json.loads(capsys.readouterr().out)
    assert run("inspect", archive) == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert run("expand", archive, "--out", back, "--base-model", base) == 0

    assert printed["codec_config"]["density"] == 0.1
    assert printed["init_seed"] == SEED
    assert printed["total_bytes"] == archive.stat().st_size
    assert read_adapter(back, tiny_config()).method.rank == 4
    assert AdapterManifest.model_validate_json((back / "manifest.json").read_bytes()).base_digest


def test_an_uncompressed_archive_comes_back_bit_for_bit(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    archive, back = tmp_path / "a.tnd", tmp_path / "back"

    run("compress", adapter, "--codec", "none", "--out", archive, "--base-model", base)
    run("expand", archive, "--out", back, "--base-model", base)

    want = read_adapter(adapter, tiny_config()).params
    have = read_adapter(back, tiny_config()).params
    assert all(torch.equal(have[name], tensor) for name, tensor in want.items())


def test_a_folder_without_our_manifest_is_compressed_without_a_seed(
    adapter: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "manifest.json").unlink()

    assert run("compress", adapter, "--out", tmp_path / "a.tnd", "--base-model", base) == 0

    printed = json.loads(capsys.readouterr().out)
    assert "init_seed" not in printed
    assert printed["base_model"] == "base"


def test_adapters_are_merged_with_equal_weights_unless_told(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    same = tmp_path / "same"
    halves = ("merge", adapter, adapter, "--method", "cat", "--base-model", base)

    assert run(*halves, "--out", same) == 0
    assert run(*halves, "--out", tmp_path / "none", "--weights", 1, -1) == 0

    assert read_adapter(same, tiny_config()).method.rank == 8
    none = read_adapter(tmp_path / "none", tiny_config()).params
    assert not any((t[:4] + t[4:]).any() for n, t in none.items() if "lora_A" in n)


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (("--density", 7), "Option density is wrong"),
        (("--codec", "int8", "--density", 0.1), "Option density is wrong"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(
    extra: tuple[object, ...],
    reason: str,
    adapter: Path,
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a.tnd"

    assert run("compress", adapter, "--out", out, "--base-model", base, *extra) == 1

    assert capsys.readouterr().err.startswith(f"tandem adapters local: {reason}")
    assert not out.exists()


def test_a_merge_whose_options_are_no_json_is_refused(
    adapter: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--out", tmp_path / "m", "--base-model", base, "--config", "{")

    assert run("merge", adapter, *arguments) == 1

    assert "not JSON" in capsys.readouterr().err


def test_a_missing_adapter_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compress", tmp_path, "--out", tmp_path / "a", "--base-model", base) == 1

    assert "adapter_config.json is missing" in capsys.readouterr().err
