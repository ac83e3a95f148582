"""A checkpoint is whole or absent, whatever happens while it is written or afterwards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from scheduler.domain.errors import InvalidInput
from tests.unit.workers.packed_run import random_lora
from tests.unit.workers.tiny_models import CPU, FAMILIES
from workers.adapter_file import BaseIdentity
from workers.architecture import decoder_config
from workers.hf_config import HfConfig
from workers.job_checkpoint import (
    CheckpointData,
    JobState,
    fingerprint,
    read_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from workers.model import DecoderConfig

if TYPE_CHECKING:
    from workers.peft_methods.lora import Lora

FILES = [
    "manifest.json",
    "state.json",
    "optimizer.safetensors",
    "adapter/manifest.json",
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
]


def decoder_of(oracle: PreTrainedModel) -> DecoderConfig:
    return decoder_config(HfConfig.model_validate(oracle.config.to_dict()))


def job(step: int) -> tuple[Lora, CheckpointData]:
    oracle = FAMILIES["llama"]()
    oracle.config.architectures = ["LlamaForCausalLM"]
    method, params = random_lora(decoder_of(oracle), step, 2, ("q_proj",))
    moments = torch.randn(40, generator=torch.Generator().manual_seed(step))
    state = JobState(step, 100 * step, {"train_loss": 0.1 * step})
    return method, CheckpointData(params, {"exp_avg": moments}, state)


def write(root: Path, step: int) -> Path:
    method, data = job(step)
    machine = fingerprint(CPU, torch.float32)
    return write_checkpoint(root, method, data, BaseIdentity("base", "digest"), machine)[0]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("original"), 3)


@pytest.fixture(scope="module")
def method() -> Lora:
    return job(3)[0]


def spoilt(original: Path, name: str, content: bytes | None) -> None:
    """Read the checkpoint with one file changed; it is put back afterwards."""
    path = original / name
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    try:
        read_checkpoint(original, job(3)[0])
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


def test_what_is_written_is_read_back_bit_for_bit(original: Path, method: Lora) -> None:
    _, want = job(3)

    got = read_checkpoint(original, method)

    assert got.state == want.state
    assert got.params.keys() == want.params.keys()
    assert all(torch.equal(got.params[name], want.params[name]) for name in want.params)
    assert torch.equal(got.optimizer_state["exp_avg"], want.optimizer_state["exp_avg"])


def test_the_files_of_a_checkpoint_are_those_that_are_tortured_here(original: Path) -> None:
    files = [p.relative_to(original).as_posix() for p in original.rglob("*") if p.is_file()]

    assert sorted(files) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(original: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        spoilt(original, name, None)


def test_an_added_file_is_refused(original: Path) -> None:
    with pytest.raises(InvalidInput):
        spoilt(original, "adapter/pytorch_model.bin", b"x")


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(original: Path, name: str, share: float) -> None:
    content = (original / name).read_bytes()

    with pytest.raises(InvalidInput):
        spoilt(original, name, content[: int(share * len(content))])


@pytest.mark.parametrize("name", FILES[1:])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_flipped_bit_is_refused(original: Path, name: str, data: st.DataObject) -> None:
    content = bytearray((original / name).read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(InvalidInput):
        spoilt(original, name, bytes(content))


def test_a_checkpoint_of_another_rank_is_refused(original: Path) -> None:
    oracle = FAMILIES["llama"]()
    oracle.config.architectures = ["LlamaForCausalLM"]
    other, _ = random_lora(decoder_of(oracle), 1, 3, ("q_proj",))

    with pytest.raises(InvalidInput, match="another adapter shape"):
        read_checkpoint(original, other)


def test_writing_the_same_step_again_gives_the_checkpoint_that_is_there(tmp_path: Path) -> None:
    first = write(tmp_path, 2)
    before = (first / "manifest.json").read_bytes()

    again = write(tmp_path, 2)

    assert again == first
    assert (first / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["step-2"]


class Killed(BaseException):
    """The process is gone at this point."""


class Fuse:
    """Lets `left` durable operations pass, then kills."""

    def __init__(self, left: int) -> None:
        self.left = left

    def burn(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def write_killed_after(root: Path, num_operations: int, patch: pytest.MonkeyPatch) -> bool:
    """Write step 2, killed at a write, flush or rename; whether it got through."""
    fuse = Fuse(num_operations)
    fsync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def burning_fsync(handle: int) -> None:
        fuse.burn()
        fsync(handle)

    def burning_rename(path: Path, target: Path) -> Path:
        fuse.burn()
        return rename(path, target)

    def burning_unlink(path: Path, missing_ok: bool = False) -> None:
        if fuse.left == 0:  # the dead tidy nothing up
            raise Killed
        unlink(path, missing_ok)

    patch.setattr(os, "fsync", burning_fsync)
    patch.setattr(Path, "rename", burning_rename)
    patch.setattr(Path, "unlink", burning_unlink)
    try:
        write(root, 2)
    except Killed:
        return False
    finally:
        patch.undo()
    return True


def test_a_kill_at_any_point_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = 0
    while True:
        root = tmp_path / str(points)
        old = write(root, 1)
        got_through = write_killed_after(root, points, monkeypatch)

        verify_checkpoint(old)
        new = root / "step-2"
        assert got_through <= new.exists()
        if new.exists():
            assert read_checkpoint(new, job(2)[0]).state.step == 2
        assert write(root, 2) == new
        verify_checkpoint(new)
        if got_through:
            break
        points += 1

    assert points > 15
