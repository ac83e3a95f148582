"""Every codec: deterministic, near what it was given, exact in size, deaf to hostile payloads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.errors import InvalidInput
from workers import rice
from workers.codec import Codec, Shapes, num_entries
from workers.codecs import CODECS
from workers.codecs.compeft import Compeft, largest

NAMES = CODECS.names()
SHAPES: Shapes = {
    f"layers.{layer}.q_proj.lora_{factor}.weight": (3, 50) if factor == "A" else (40, 3)
    for layer in range(3)
    for factor in "AB"
}
SIZE_OF_B = 0.01  # B's entries are smaller than A's in any trained adapter
CLOSE = {"none": 0.0, "int8": 0.01, "int4": 0.15, "compeft": 0.85}  # relative error of the whole


def make_params(shapes: Shapes = SHAPES, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * (SIZE_OF_B if "lora_B" in name else 1.0)
        for name, shape in shapes.items()
    }


def make(name: str, **options: Any) -> Codec:
    return CODECS[name](CODECS[name].Config.model_validate(options))


@pytest.mark.parametrize("name", NAMES)
class TestEveryCodec:
    def test_what_comes_out_is_near_what_went_in(self, name: str) -> None:
        params = make_params()

        decoded = make(name).decode(make(name).encode(params), SHAPES)

        assert {n: tuple(t.shape) for n, t in decoded.items()} == SHAPES
        assert all(t.dtype == torch.float32 for t in decoded.values())
        for factor in "AB":
            want = torch.cat([params[n].flatten() for n in SHAPES if f"lora_{factor}" in n])
            got = torch.cat([decoded[n].flatten() for n in SHAPES if f"lora_{factor}" in n])
            assert float((got - want).norm() / want.norm()) <= CLOSE[name]

    def test_the_same_parameters_give_the_same_bytes_in_any_order(self, name: str) -> None:
        params = make_params()

        backwards = dict(reversed(params.items()))

        assert make(name).encode(params) == make(name).encode(backwards)

    def test_coding_the_decoded_changes_nothing_more(self, name: str) -> None:
        codec = make(name)
        decoded = codec.decode(codec.encode(make_params()), SHAPES)

        again = codec.decode(codec.encode(decoded), SHAPES)

        tolerance = 1e-6  # of float32 means of equal numbers
        assert all(torch.allclose(again[n], decoded[n], rtol=tolerance) for n in SHAPES)

    def test_an_adapter_of_zeros_stays_one(self, name: str) -> None:
        zeros = {n: torch.zeros(shape) for n, shape in SHAPES.items()}

        decoded = make(name).decode(make(name).encode(zeros), SHAPES)

        assert not any(t.any() for t in decoded.values())

    def test_no_payload_is_longer_than_promised(self, name: str) -> None:
        limit = make(name).max_bytes(SHAPES)

        assert len(make(name).encode(make_params())) <= limit
        assert limit < 5 * num_entries(SHAPES)

    @pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_that_are_not_finite_are_refused(self, name: str, number: float) -> None:
        params = make_params()
        params[next(iter(SHAPES))][0, 0] = number

        with pytest.raises(InvalidInput):
            make(name).encode(params)

    def test_a_payload_of_another_length_is_refused(self, name: str) -> None:
        payload = make(name).encode(make_params())

        for wrong in (b"", payload[:-1], payload[: len(payload) // 2], payload + b"\x00"):
            with pytest.raises(InvalidInput):
                make(name).decode(wrong, SHAPES)

    def test_a_payload_for_other_shapes_is_refused(self, name: str) -> None:
        payload = make(name).encode(make_params())

        with pytest.raises(InvalidInput):
            make(name).decode(payload, SHAPES | {"layers.3.q_proj.lora_A.weight": (3, 50)})

    @given(place=st.integers(0, 10**6), noise=st.binary(min_size=1, max_size=8))
    def test_noise_is_refused_or_gives_finite_numbers(
        self, name: str, place: int, noise: bytes
    ) -> None:
        payload = bytearray(make(name).encode(make_params()))
        start = place % (len(payload) - len(noise))
        payload[start : start + len(noise)] = noise

        try:
            decoded = make(name).decode(bytes(payload), SHAPES)
        except InvalidInput:
            return
        assert all(bool(torch.isfinite(t).all()) for t in decoded.values())

    def test_every_option_has_a_description(self, name: str) -> None:
        properties = CODECS[name].Config.model_json_schema().get("properties", {})

        assert all("description" in schema for schema in properties.values())


def test_uncompressed_numbers_are_equal_bit_for_bit() -> None:
    params = make_params()

    decoded = make("none").decode(make("none").encode(params), SHAPES)

    assert all(torch.equal(decoded[n], params[n]) for n in SHAPES)


def test_bfloat16_is_half_the_size_and_exact_for_bfloat16_adapters() -> None:
    params = {n: t.bfloat16() for n, t in make_params().items()}
    codec = make("none", dtype="bfloat16")

    payload = codec.encode(params)

    assert len(payload) == 2 * num_entries(SHAPES)
    assert all(torch.equal(codec.decode(payload, SHAPES)[n], params[n].float()) for n in SHAPES)


@pytest.mark.parametrize(("name", "bits"), [("int8", 8.25), ("int4", 4.25)])
def test_integer_codecs_cost_their_bits_and_a_scale_per_group(name: str, bits: float) -> None:
    shapes: Shapes = {"lora_A": (64, 128)}

    assert 8 * len(make(name).encode(make_params(shapes))) == bits * 64 * 128


def test_a_number_too_large_for_a_half_precision_scale_is_refused() -> None:
    with pytest.raises(InvalidInput, match="too large"):
        make("int4").encode({"lora_A": torch.full((8, 8), 1e30)})


class TestCompeft:
    @pytest.mark.parametrize("group_by", ["factor", "tensor"])
    @pytest.mark.parametrize("density", [0.01, 0.1, 0.5, 1.0])
    def test_the_ternary_form_survives_the_file_bit_for_bit(
        self, density: float, group_by: str
    ) -> None:
        codec = Compeft(Compeft.Config.model_validate({"density": density, "group_by": group_by}))
        before = codec.ternarise(make_params())

        after = codec.unpack(codec.pack(before, SHAPES), SHAPES)

        assert before.groups.keys() == after.groups.keys()
        for name, group in before.groups.items():
            assert group.scale == after.groups[name].scale
            assert np.array_equal(group.signs.positive, after.groups[name].signs.positive)
            assert np.array_equal(group.signs.negative, after.groups[name].signs.negative)

    def test_a_file_is_within_five_percent_of_the_entropy(self) -> None:
        shapes = {f"layers.{i}.lora_{f}.weight": (16, 1024) for i in range(8) for f in "AB"}
        size = num_entries(shapes)
        for density in (0.05, 0.1, 0.2, 0.3, 0.5):
            payload = make("compeft", density=density).encode(make_params(shapes))

            bound = 16 * 32 + rice.entropy_bits(int(density * size / 2) * 2, size)
            assert bound < 8 * len(payload) < 1.05 * bound

    def test_b_is_not_starved_by_a(self) -> None:
        codec = Compeft(Compeft.Config(density=0.2, group_by="factor"))

        groups = codec.ternarise(make_params()).groups

        assert sorted(groups) == ["lora_A", "lora_B"]
        assert groups["lora_A"].signs.num_nonzero == int(0.2 * 450)
        assert groups["lora_B"].signs.num_nonzero == int(0.2 * 360)
        assert groups["lora_B"].scale < 0.1 * groups["lora_A"].scale

    def test_the_scale_is_alpha_deviations_over_the_whole_group(self) -> None:
        params = make_params()
        flat = torch.cat([params[n].flatten() for n in sorted(SHAPES) if "lora_A" in n])

        codec = Compeft(Compeft.Config(density=0.1, alpha=3, group_by="factor"))

        assert codec.ternarise(params).groups["lora_A"].scale == pytest.approx(
            3 * float(flat.std())
        )

    def test_without_alpha_the_change_keeps_its_length_along_itself(self) -> None:
        params = {"lora_A": torch.tensor([[4.0, -2.0, 2.0, 0.0]])}
        codec = make("compeft", density=0.5)

        decoded = codec.decode(codec.encode(params), {"lora_A": (1, 4)})["lora_A"]

        assert decoded.tolist() == [[4.0, -4.0, 0.0, 0.0]]  # (16 + 4 + 4) / (4 + 2)
        assert float((decoded * params["lora_A"]).sum()) == 24

    def test_the_count_is_exact_among_equal_entries_and_zeros_are_never_kept(self) -> None:
        equal = np.array([1, -1, 1, 1, -1, 0, 0, 0], np.float32)

        assert largest(equal, 0.25).tolist() == [0, 1]
        assert largest(equal, 1.0).tolist() == [0, 1, 2, 3, 4]
        assert largest(equal, 0.01).tolist() == [0]
        assert largest(np.zeros(4, np.float32), 0.5).tolist() == []

    @pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
    def test_a_hostile_scale_is_refused(self, scale: float) -> None:
        payload = make("compeft").encode(make_params())

        with pytest.raises(InvalidInput, match="scale"):
            make("compeft").decode(np.float32(scale).tobytes() + payload[4:], SHAPES)
