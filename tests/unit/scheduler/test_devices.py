"""Devices are named as torch names them, and models that cannot fit are refused at once."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from scheduler.base_model import BaseModelFolder
from scheduler.devices import check_fit, parse_devices, serving_dtype
from scheduler.domain.errors import InvalidInput

NVIDIA_SMI = "#!/bin/sh\nprintf '0, 40000\\n1, 1000\\n'\n"


def _model(num_parameters: int) -> BaseModelFolder:
    return BaseModelFolder("big", Path("/models/big"), num_parameters)


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver reports 40,000 MiB and 1,000 MiB of free memory."""
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")


@pytest.mark.parametrize(
    ("written", "devices"), [("cpu", ["cpu"]), ("0", ["cuda:0"]), ("1,0", ["cuda:1", "cuda:0"])]
)
def test_devices_are_read(written: str, devices: list[str]) -> None:
    assert parse_devices(written) == devices


@pytest.mark.parametrize("written", ["", "gpu", "0,", "cpu,0", "0,0", "-1"])
def test_other_devices_are_refused(written: str) -> None:
    with pytest.raises(InvalidInput, match="--devices"):
        parse_devices(written)


def test_models_that_need_more_than_the_memory_are_refused_with_the_numbers() -> None:
    too_many = psutil.virtual_memory().total // 4 + 1

    with pytest.raises(InvalidInput, match=r"big need .* GiB of weights on cpu"):
        check_fit("cpu", "auto", [_model(too_many)])


@pytest.mark.usefixtures("two_gpus")
def test_quantized_models_are_counted_in_their_format() -> None:
    check_fit("cuda:1", "auto", [_model(800 * 10**6)], "int8")
    check_fit("cuda:1", "auto", [_model(1500 * 10**6)], "int4")

    with pytest.raises(InvalidInput, match="cuda:1"):
        check_fit("cuda:1", "auto", [_model(1500 * 10**6)], "int8")


@pytest.mark.usefixtures("two_gpus")
def test_models_share_one_device_only_when_they_fit_together() -> None:
    # 1,000 MiB x 0.8 = 800 MiB; a bfloat16 parameter takes 2 bytes: room for 419 million.
    check_fit("cuda:1", "auto", [_model(400 * 10**6)])

    with pytest.raises(InvalidInput, match="cuda:1"):
        check_fit("cuda:1", "auto", [_model(300 * 10**6), _model(300 * 10**6)])
    check_fit("cuda:0", "auto", [_model(300 * 10**6), _model(300 * 10**6)])


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidInput, match="no GPU 7; there are: 0, 1"):
        check_fit("cuda:7", "auto", [_model(1)])


def test_a_machine_without_a_driver_is_told_to_use_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(InvalidInput, match="use --devices cpu"):
        check_fit("cuda:0", "auto", [_model(1)])


def test_auto_is_float32_on_a_cpu_and_bfloat16_on_a_gpu() -> None:
    assert serving_dtype("cpu", "auto") == "float32"
    assert serving_dtype("cuda:0", "auto") == "bfloat16"
    assert serving_dtype("cuda:0", "float16") == "float16"
