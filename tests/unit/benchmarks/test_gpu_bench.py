"""The benchmark of a card runs at toy sizes on any machine, and knows its own parts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import BUDGET_S, LEAST_S, failure_of
from benchmarks.gpu.contexts import dominated_batch
from benchmarks.gpu.part import PARTS, measure
from benchmarks.gpu.quantized import read_bytes
from benchmarks.gpu.random_model import random_decoder
from benchmarks.gpu.setting import SHAPES, Setting, linear_parameters, llama_config
from benchmarks.gpu.table import table

TINY = Setting(torch.device("cpu"), is_tiny=True)


@pytest.mark.parametrize("name", ["ceilings", "decode", "prefill", "contexts"])
def test_a_part_gives_figures_that_json_can_hold(name: str) -> None:
    figures = measure(name, TINY)

    assert json.loads(json.dumps(figures)) == figures
    assert name in table({"parts": {name: figures}})


def test_kernels_of_this_machine_equal_plain_torch() -> None:
    figures = measure("kernel_checks", TINY)

    assert figures["wrong"] == []
    assert table({"parts": {"kernel_checks": figures}}).endswith("wrong: none")


def test_a_step_reads_less_of_a_base_in_int8() -> None:
    wide = random_decoder("tiny", TINY, 1)
    held = random_decoder("tiny", TINY, 1, weight_format="int8")

    vocabulary = held.weights.lm_head.num_bytes
    assert held.weights.weight_format == "int8"
    # float32 here: a byte a weight and a float32 scale an output, of 64 or 128 inputs
    assert read_bytes(held) - vocabulary < 0.3 * (read_bytes(wide) - vocabulary)


def test_attention_of_this_machine_equals_torch_s_own() -> None:
    figures = measure("attention_peers", TINY)

    assert len(figures) == 4
    assert all(each["difference"] < 1e-5 for each in figures.values())  # type: ignore[index]


def test_a_part_that_failed_shows_what_it_had_measured_before() -> None:
    part = {"tiny": {"step_ms": 2.0}, "error": "Traceback\nRuntimeError: no"}

    assert table({"parts": {"decode": part}}).splitlines() == [
        "decode, tiny: step_ms 2",
        "decode: RuntimeError: no",
    ]


def test_a_part_that_lacks_a_package_says_so_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    for module in ("service", "service_client", "service_process"):
        monkeypatch.delitem(sys.modules, f"benchmarks.gpu.{module}", raising=False)

    figures = measure("service", TINY)

    assert list(figures) == ["missing"]
    assert "httpx" in table({"parts": {"service": figures}})


def test_all_parts_together_may_take_less_than_nine_minutes() -> None:
    assert sum(part.limit_s for part in PARTS.values()) <= BUDGET_S < 540
    assert min(part.limit_s for part in PARTS.values()) >= LEAST_S


def test_a_program_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    grandchild = f"import time; time.sleep(2); open({str(alive)!r}, 'w')"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"

    assert failure_of([sys.executable, "-c", child], 0.5) == "took longer than 0 s"
    time.sleep(2)
    assert not alive.exists()


def test_a_program_that_fails_is_quoted() -> None:
    assert failure_of([sys.executable, "-c", "raise SystemExit('no card')"], 60) == "no card"
    assert failure_of([sys.executable, "-c", "print('fine')"], 60) is None


def test_the_large_shape_has_the_parameters_of_an_8b_model() -> None:
    config = llama_config("8b")

    vocabulary = 2 * config.vocab_size * config.hidden_size
    assert 8.0e9 < linear_parameters(config) + vocabulary < 8.1e9
    assert set(SHAPES) >= set(TINY.models)


def test_k_and_v_are_twice_the_weights_of_an_8b_model_at_16_callers_of_16k() -> None:
    card, config = Setting(torch.device("cuda"), is_tiny=False), llama_config("8b")

    # 15.0 GB of weights; 131,072 bytes of K/V a token: 2.1 GB at 16k, 8.6 GB at 64k
    assert dominated_batch(config, card, 16_384) == 16
    assert dominated_batch(config, card, 65_536) == 4


@pytest.mark.e2e
def test_a_whole_run_measures_every_part(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)]

    done = subprocess.run(
        [*command, "--device", "cpu", "--tiny"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout[-2000:]
    (path,) = tmp_path.glob("*.json")
    assert set(json.loads(path.read_text())["parts"]) == set(PARTS)
