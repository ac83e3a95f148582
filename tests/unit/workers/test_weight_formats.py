"""Every weight format: products with the dequantized matrix, small errors, and fewer bytes."""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scheduler.devices import BYTES_IN_FORMAT
from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.errors import InvalidInput, UnknownPlugin
from scheduler.domain.messages import BaseModelInfo
from tests.unit.workers.autograd_decoder import AutogradDecoder
from tests.unit.workers.tiny_models import CPU, save_oracle
from tests.unit.workers.train_bench import Bench, random_examples
from workers import weight_format
from workers.activations import SaveLevel
from workers.adapter_arena import AdapterArena
from workers.adapter_file import BaseIdentity
from workers.architecture import decoder_config
from workers.base_weights import WeightFolder, load_weights
from workers.cpu_backward import CpuBackward
from workers.cpu_decoder import CpuDecoder
from workers.decoder import Decoder
from workers.frozen_linear import FrozenLinear
from workers.hf_config import read_hf_config
from workers.job_checkpoint import fingerprint
from workers.kernels.cpu_kernels import cpu_kernels
from workers.model import MODULE_PATHS
from workers.shard import Shard
from workers.weight_format import WEIGHT_FORMATS, QuantizedWeight, find_format

if TYPE_CHECKING:
    from collections.abc import Callable

assert find_format("int8") is not None
FORMATS = WEIGHT_FORMATS.names()
# Odd outputs and inputs; those of the kernels; more than one block, both ways.
SHAPES = ((48, 80), (33, 256), (66, 96), (512, 4096))
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ALL = tuple(MODULE_PATHS)
SMALLEST_STEP = torch.finfo(torch.float32).eps


def random_matrix(outputs: int, inputs: int, seed: int = 0, scale: float = 0.02) -> Tensor:
    """Rows of very different sizes, as trained matrices have them."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(outputs, 1, generator=generator) + 0.01
    return torch.randn(outputs, inputs, generator=generator) * sizes * scale


def quantized(name: str, weight: Tensor) -> QuantizedWeight:
    return WEIGHT_FORMATS[name].of(weight)


def step_of_int4(weight: Tensor) -> Tensor:
    """A step of each weight's group: its range, zero included, in 15 parts."""
    groups = weight.unflatten(1, (-1, 64))
    top, bottom = groups.amax(2).clamp(min=0), groups.amin(2).clamp(max=0)
    return ((top - bottom) / 15).clamp(min=SMALLEST_STEP).repeat_interleave(64, dim=1)


LARGEST_ERROR: dict[str, Callable[[Tensor], Tensor]] = {
    "int8": lambda w: (w.abs().amax(1, keepdim=True) / 255).clamp(min=SMALLEST_STEP / 2),
    "int4": step_of_int4,  # half a step of its own and half a step of the zero point
    "fp8": lambda w: w.abs() / 16 + w.abs().amax(1, keepdim=True) / 448 / 1024,
}
BYTES_PER_WEIGHT = {"int8": 1.02, "int4": 0.55, "fp8": 1.02}


@pytest.mark.parametrize("name", FORMATS)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from((1e-4, 0.02, 1.0, 300.0)))
@settings(max_examples=20, deadline=None)
def test_no_weight_is_off_by_more_than_its_format_says(name: str, seed: int, scale: float) -> None:
    weight = random_matrix(16, 192, seed, scale)

    error = (quantized(name, weight).dequantize() - weight).abs()

    assert (error <= LARGEST_ERROR[name](weight) * 1.001).all()


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_of_zeros_stays_zero(name: str) -> None:
    weight = random_matrix(4, 128)
    weight[2] = 0

    assert not quantized(name, weight).dequantize()[2].any()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_products_are_those_with_the_dequantized_matrix(
    name: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = quantized(name, random_matrix(*shape).to(dtype))
    x, grad = random_matrix(5, shape[1], 1, 1.0).to(dtype), random_matrix(5, shape[0], 2, 1.0)
    bias, into = random_matrix(1, shape[0], 3)[0].to(dtype), random_matrix(5, shape[0], 4).to(dtype)
    linear, wide = FrozenLinear(weight, bias), weight.dequantize().double()
    want = x.double() @ wide.T + bias

    assert torch.equal(linear.weight, weight.dequantize())
    assert_close(linear(x), want, dtype)
    assert_close(linear(x, into.clone()), want + into, dtype)
    assert_close(linear.input_grad(grad.to(dtype)), grad.to(dtype).double() @ wide, dtype)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(2, 32), (66, 96), (130, 256), (48, 80)], ids=str)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from((1e-4, 0.02, 300.0)))
@settings(max_examples=10, deadline=None)
def test_products_use_what_is_dequantized_to_the_last_bit(
    name: str, shape: tuple[int, int], seed: int, scale: float
) -> None:
    weight = quantized(name, random_matrix(*shape, seed, scale).bfloat16())
    outputs, inputs = (torch.eye(count, dtype=torch.bfloat16) for count in shape)

    assert torch.equal(weight.linear(inputs).T, weight.dequantize())
    assert torch.equal(weight.input_grad(outputs), weight.dequantize())


@pytest.mark.parametrize("name", FORMATS if cpu_kernels(torch.bfloat16) else [])
def test_a_row_is_the_same_beside_any_rows_and_on_any_number_of_threads(name: str) -> None:
    weight = quantized(name, random_matrix(130, 256).bfloat16())
    x, grad = (random_matrix(23, width, 1, 1.0).bfloat16() for width in (256, 130))
    together = weight.linear(x), weight.input_grad(grad)
    before = torch.get_num_threads()

    torch.set_num_threads(3)
    alone = [weight.linear(row[None]) for row in x], [weight.input_grad(row[None]) for row in grad]
    torch.set_num_threads(before)

    for whole, rows in zip(together, alone, strict=True):
        assert torch.equal(whole, torch.cat(rows))


def assert_close(got: Tensor, want: Tensor, dtype: torch.dtype) -> None:
    assert got.dtype is dtype
    assert float((got - want).abs().max()) <= TOLERANCE[dtype] * float(want.abs().max())


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_wide_is_held(name: str) -> None:
    weight = random_matrix(256, 512)
    linear = FrozenLinear(held := quantized(name, weight))

    memory = sum(tensor.untyped_storage().nbytes() for tensor in held.codes.tensors)
    assert linear.num_bytes == memory <= BYTES_PER_WEIGHT[name] * weight.numel()


@pytest.mark.parametrize("name", FORMATS)
def test_a_gradient_is_autograds_on_the_dequantized_weights(name: str) -> None:
    folder = Path(mkdtemp())
    save_oracle("qwen2", folder)
    decoder, oracle = load(folder, name, torch.float64)
    bench = Bench(decoder, random := Random(3), SaveLevel.INPUTS)
    job = bench.start_job(4, ALL, random_examples(random))

    bench.finish()

    lora = {key: tensor.double().requires_grad_() for key, tensor in job.params.items()}
    losses = [oracle.loss(ids, weights, lora, 2.0) for ids, weights in job.examples]
    total = sum(sum(weights[1:]) for _, weights in job.examples)
    torch.autograd.backward(sum(losses, torch.zeros(())) / total)
    for key, tensor in lora.items():
        assert tensor.grad is not None
        error = (job.gradient[key] - tensor.grad).abs().max()
        assert error <= 1e-10 * max(1.0, float(tensor.grad.abs().max())), key


def load(folder: Path, name: str, dtype: torch.dtype) -> tuple[Decoder, AutogradDecoder]:
    """A decoder over quantized weights, and an oracle over the same ones, dequantized."""
    config = decoder_config(read_hf_config(folder))
    weights = load_weights(WeightFolder(folder), config, dtype, CPU, weight_format=name)
    oracle = AutogradDecoder(config, folder)
    for key, tensor in oracle.weights.items():
        if key.endswith("_proj.weight"):
            oracle.weights[key] = quantized(name, tensor).dequantize()
    return Decoder(config, weights, AdapterArena(config, 16, dtype, CPU)), oracle


@pytest.mark.parametrize("name", FORMATS)
def test_the_fused_kernels_step_aside(name: str) -> None:
    folder = Path(mkdtemp())
    save_oracle("mistral_wide", folder)
    decoder, _ = load(folder, name, torch.float32)

    assert CpuDecoder.try_of(decoder.config, decoder.weights, decoder.arena) is None
    assert CpuBackward.try_of(decoder) is None


def test_each_rank_of_a_group_quantizes_its_part(tmp_path: Path) -> None:
    save_oracle("qwen3", tmp_path)
    config, files = decoder_config(read_hf_config(tmp_path)), WeightFolder(tmp_path)
    for rank in range(2):
        shard = Shard(rank, 2)
        plain, held = (
            load_weights(files, config, torch.float32, CPU, shard, name).layers[0].linears
            for name in ("none", "int8")
        )
        for wide, narrow in zip(plain, held, strict=True):
            outputs = torch.eye(wide.out_features)
            weight = wide.input_grad(outputs)
            assert narrow.input_grad(outputs).shape == weight.shape
            assert (narrow.input_grad(outputs) - weight).norm() < 0.01 * weight.norm()


def test_keys_and_fingerprints_tell_formats_apart() -> None:
    identities = [BaseIdentity("base", "digest", name) for name in ("none", *FORMATS)]
    machines = [fingerprint(CPU, torch.float32, name) for name in ("none", *FORMATS)]

    assert len({identity.computed_digest for identity in identities}) == 1 + len(FORMATS)
    assert identities[0].computed_digest == "digest"
    assert len({str(machine) for machine in machines}) == 1 + len(FORMATS)


def test_the_command_line_counts_bytes_of_every_format() -> None:
    assert BYTES_IN_FORMAT.keys() == set(FORMATS)


def test_manifests_of_plain_bases_are_as_older_versions_read_them() -> None:
    manifest = AdapterManifest(
        base_model="m", base_digest="b", digest="d", num_bytes=0, files={}, weight_format="int8"
    )
    plain = manifest.model_copy(update={"weight_format": "none"})

    assert AdapterManifest.model_validate_json(manifest.model_dump_json()) == manifest
    assert "weight_format" not in plain.model_dump_json()


def test_the_system_fingerprint_tells_formats_apart() -> None:
    base = BaseModelInfo(
        id="m", digest="d" * 64, max_model_len=1, vocab_size=1, num_parameters=1, dtype="float32"
    )

    assert base.fingerprint == "fp_dddddddddddd"
    assert base.model_copy(update={"weight_format": "int8"}).fingerprint == "fp_dddddddddddd_int8"


def test_an_unknown_format_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UnknownPlugin, match="weight format 'int7'; known: fp8, int4, int8"):
        find_format("int7")


def test_int4_refuses_a_matrix_that_has_no_groups() -> None:
    with pytest.raises(InvalidInput, match="multiple of 16 inputs; a matrix of the base has 24"):
        quantized("int4", random_matrix(8, 24))


def test_plain_weights_need_no_torchao() -> None:
    assert find_format("none") is None


def test_a_machine_without_torchao_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_format, "find_spec", lambda _: None)

    with pytest.raises(
        InvalidInput, match=r"int8 need torchao: pip install 'tandem-llm\[quantized\]'"
    ):
        find_format("int8")
