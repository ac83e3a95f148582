"""What the compiler makes of the Triton kernels for a Hopper card; no card is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e
PROGRAM = Path(__file__).parents[1] / "unit/workers/compile_kernels.py"
KERNELS = {
    *("_accumulate", "_attend", "_backward", "_column_sums", "_contract", "_expand", "_forward"),
    *("_grad_keys", "_grad_queries", "_join", "_join_middles", "_rotate_backward"),
    *("_log_sums", "_rotate_store", "_sample_part", "_sample_token", "_store_heads"),
    *("_multiply_codes", "_sum_splits"),
}
PRODUCTS = {
    *("_accumulate", "_attend", "_column_sums", "_contract", "_expand"),
    *("_grad_keys", "_grad_queries", "_log_sums", "_multiply_codes"),
}
MIDDLES = "middles"  # parts whose kernels also read matrices of rank x rank, number by number
NARROW = {"_join", "_store_heads"}  # their tiles are smaller than a block's threads could read
SHAPES = ("8B", "1B")
SHARED_BYTES = 227 << 10  # what a block may have
Figures = list[dict[str, Any]]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Figures:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    cache = str(tmp_path_factory.mktemp("triton"))
    environment |= {"TRITON_CACHE_DIR": cache, "PYTHONPATH": str(Path.cwd())}
    running = [
        subprocess.Popen(
            [sys.executable, PROGRAM, "--json", shape],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for shape in SHAPES
    ]
    found: Figures = []
    for process in running:
        printed, complaints = process.communicate()
        assert process.returncode == 0, complaints[-2000:]
        found += json.loads(printed)
    return found


def named(figures: Figures) -> list[str]:
    return [f"{each['kernel']} ({each['part']})" for each in figures]


def test_every_kernel_compiles_and_fits_a_multiprocessor(figures: Figures) -> None:
    assert {each["kernel"] for each in figures} == KERNELS
    assert all(each["shared bytes"] <= SHARED_BYTES for each in figures)
    assert named([each for each in figures if each["blocks on an SM"] == 0]) == []


def test_no_kernel_runs_out_of_registers(figures: Figures) -> None:
    assert named([each for each in figures if each["stack bytes"] > 0]) == []


def test_products_are_those_of_tensor_cores(figures: Figures) -> None:
    plain = [each for each in figures if MIDDLES not in each["part"]]
    multiplying = [each for each in plain if each["products"]]

    assert {each["kernel"] for each in multiplying} == PRODUCTS
    assert len(multiplying) == len([each for each in plain if each["kernel"] in PRODUCTS])


def test_numbers_are_read_sixteen_bytes_at_a_time(figures: Figures) -> None:
    def widths(each: dict[str, Any]) -> set[str]:
        return {*each["loads"], *each["copies"]}

    plain = [each for each in figures if MIDDLES not in each["part"]]
    assert named([each for each in plain if "2" in widths(each)]) == []
    rows = [each for each in plain if each["kernel"] not in NARROW]
    assert named([each for each in rows if "16" not in widths(each)]) == []


def test_codes_are_on_their_way_while_others_are_multiplied(figures: Figures) -> None:
    products = [each for each in figures if each["kernel"] == "_multiply_codes"]

    assert len(products) == 24  # two shapes, three kinds, two counts of rows, two widths
    assert all({*each["copies"]} == {"8", "16"} for each in products)
    assert {each["products"] for each in products} == {"wgmma"}
