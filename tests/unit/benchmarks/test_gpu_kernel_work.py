"""What the card's benchmark holds the kernels of a step against."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.kernel_times import short_name, step_figures
from benchmarks.gpu.kernel_work import (
    Work,
    decode_rows,
    family_of,
    forward_work,
    prompt_rows,
    training_work,
)
from benchmarks.gpu.random_model import weight_bytes
from benchmarks.gpu.setting import Setting, linear_parameters, llama_config
from workers.model import DecoderConfig

CARD = Setting(torch.device("cuda"), is_tiny=False)


@pytest.fixture(scope="module")
def config() -> DecoderConfig:
    return llama_config("8b")


def test_a_roofline_is_the_longer_of_moving_and_computing() -> None:
    ceilings = Ceilings(bytes_per_s=10.0, flop_per_s=100.0)

    assert ceilings.seconds(20.0, 100.0) == 2.0
    assert ceilings.seconds(20.0, 400.0) == 4.0


def test_a_decode_step_reads_all_weights_once_whatever_its_batch(config: DecoderConfig) -> None:
    one, many = (forward_work(config, CARD, decode_rows(b, 512, 0)) for b in (1, 64))

    assert one["products"].num_bytes == many["products"].num_bytes == weight_bytes(config, CARD)
    assert many["products"].flop == 64 * one["products"].flop
    assert many["attention"].num_bytes == 64 * one["attention"].num_bytes
    assert one["adapters"].num_bytes == one["adapters"].flop == 0


def test_a_prompt_reads_its_keys_once_and_samples_one_row(config: DecoderConfig) -> None:
    work = forward_work(config, CARD, prompt_rows(1000))

    vocabulary = config.vocab_size * config.hidden_size
    assert work["products"].flop == 2 * (1000 * linear_parameters(config) + vocabulary)
    # 4 operations for each of 1000 * 1001 / 2 pairs and each of 4096 numbers, in 32 layers
    assert work["attention"].flop == 4 * 500_500 * 4096 * 32
    assert work["sampling"].num_bytes == 2 * config.vocab_size


def test_training_multiplies_four_times_for_each_weight_and_token(config: DecoderConfig) -> None:
    work = training_work(config, CARD, 1000)

    vocabulary = config.vocab_size * config.hidden_size
    assert work["products"].flop == 4 * 1000 * (linear_parameters(config) + vocabulary)
    assert work["adapters"].flop > 0


@pytest.mark.parametrize(
    ("kernel", "family"),
    [
        ("_attend", "attention"),
        ("_join", "attention"),
        ("_grad_keys", "attention"),
        ("flash_fwd_splitkv_kernel", "attention"),
        ("_contract", "adapters"),
        ("_join_middles", "adapters"),
        ("_rotate_store", "rows"),
        ("_accumulate", "adapters"),
        ("_sample_part", "sampling"),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_TNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n", "products"),
        ("splitKreduce_kernel", "products"),
        ("aten::addmm", "products"),
        ("_forward", "rows"),
        ("vectorized_elementwise_kernel CUDAFunctor_add", "rows"),
        ("Memcpy HtoD", "other"),
    ],
)
def test_a_kernel_belongs_to_the_family_of_its_name(kernel: str, family: str) -> None:
    assert family_of(kernel) == family


def test_a_step_is_its_kernels_and_the_gaps_between_them() -> None:
    x = torch.randn(64, 64)
    work, ceilings = {"products": Work(3 * x.nbytes, 2 * 64**3)}, Ceilings(1e9, 1e9)

    figures = step_figures(
        Setting(torch.device("cpu"), is_tiny=True), lambda: x @ x, work, ceilings
    )

    families = figures["families"]
    assert isinstance(families, dict)
    assert families["products"]["kernels"]["aten::mm"]["calls"] == 1
    assert families["products"]["roofline_ms"] == 2 * 64**3 / 1e9 * 1e3
    assert figures["gap_ms"] == figures["step_ms"] - figures["kernels_ms"]  # type: ignore[operator]


def test_a_kernel_is_named_without_templates_but_with_what_it_applies() -> None:
    long = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"

    assert short_name(long) == "vectorized_elementwise_kernel CUDAFunctor_add"
    assert short_name("_attend") == "_attend"
    assert short_name("aten::mm") == "aten::mm"
