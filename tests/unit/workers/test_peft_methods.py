"""What every PEFT method promises, whichever are registered."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor

import workers.codecs
from scheduler.domain.errors import InvalidInput
from tests.unit.workers.packed_run import random_params
from tests.unit.workers.tiny_models import CPU, make_model
from workers.adapter_archive import pack_archive, read_archive
from workers.adapter_arena import AdapterArena, empty_terms
from workers.adapter_file import BaseIdentity, LoadedAdapter, read_adapter, write_adapter
from workers.adapter_rows import AdapterRows, AdapterRun
from workers.adapter_sites import Site, sites
from workers.codec import CODECS
from workers.decoder import Decoder
from workers.flat_params import FlatParams
from workers.lora_factors import adapter_of, sites_of
from workers.peft_method import PEFT_METHODS, Params, PeftMethod, generator
from workers.singular_method import leading_singular
from workers.site_weights import SiteWeights
from workers.tasks.merge_export import Deltas

assert workers.codecs
BASE = BaseIdentity("m", "digest")
EXACT = 1e-12
SINGLE = 1e-5  # sums in float32
MODULES = ("down_proj", "q_proj", "v_proj")


@cache
def decoder() -> Decoder:
    return make_model("llama", Path(mkdtemp()), torch.float64).decoder


def make(name: str, **options: Any) -> PeftMethod:
    method = PEFT_METHODS[name]
    plain = {"rank": 3, "target_modules": MODULES}
    return method(method.Config.model_validate(plain | options), decoder().config)


def fresh(method: PeftMethod, seed: int = 1) -> Params:
    """Parameters as a job begins with them."""
    params = FlatParams(method.file_shapes(), torch.float64, CPU).views
    method.init(params, seed)
    method.make_fixed(params, SiteWeights(decoder()))
    return params


def trained(method: PeftMethod) -> Params:
    """Parameters as after some training: all that is trained has moved."""
    params, drawn = fresh(method), random_params(method, 2, torch.float64)
    return params | {name: params[name] + drawn[name] for name in method.shapes()}


def added(method: PeftMethod, params: Params, site: Site, x: Tensor) -> Tensor:
    """What the adapter adds to a linear's output, in the second half of the rows."""
    arena = AdapterArena(decoder().config, 16, torch.float64, CPU)
    columns = method.columns(offset=5)
    method.lower(params, arena.terms(columns))
    y = torch.zeros(len(x), site.linear.out_features, dtype=torch.float64)
    run = AdapterRun(len(x) // 2, len(x), columns)
    AdapterRows([run]).add(arena, site.layer, site.index, x, y)
    return y[:, site.part.start : site.part.stop]


def rows(site: Site) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(6, site.shape[1], generator=generator, dtype=torch.float64)


def is_close(got: Tensor, want: Tensor, tolerance: float) -> bool:
    return float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("name", PEFT_METHODS.names())
class TestEveryPeftMethod:
    def test_a_fresh_adapter_changes_nothing(self, name: str) -> None:
        method = make(name)
        params = fresh(method)

        for site in sites(method.model, method.modules):
            assert not added(method, params, site, rows(site)).any()

    def test_every_trained_parameter_matters_and_every_fixed_one_is_there(self, name: str) -> None:
        method = make(name)

        assert set(method.file_shapes()) == set(method.shapes()) | set(method.fixed_shapes())
        assert not set(method.shapes()) & set(method.fixed_shapes())
        assert list(method.file_shapes())[: len(method.shapes())] == list(method.shapes())
        assert all(fresh(method)[fixed].any() for fixed in method.fixed_shapes())

    def test_it_adds_what_its_merged_weight_says_to_its_own_rows_only(self, name: str) -> None:
        method = make(name)
        params = trained(method)
        deltas = Deltas(LoadedAdapter(method, params), method.model)

        for site in sites(method.model, method.modules):
            x, weight = rows(site), torch.zeros(site.shape)
            path = site.name.removeprefix("base_model.model.")
            change = deltas.merged(f"{path}.weight", weight).double()
            got = added(method, params, site, x)
            assert is_close(got[3:], x[3:] @ change.T, SINGLE)
            assert change.any()
            assert not got[:3].any()

    def test_as_factors_for_merging_it_is_the_same_change(self, name: str) -> None:
        method = make(name)
        adapter = LoadedAdapter(method, trained(method))
        merged = adapter_of(sites_of(adapter), method.model)
        before, after = (Deltas(one, method.model) for one in (adapter, merged))

        for site in sites(method.model, method.modules):
            path = f"{site.name.removeprefix('base_model.model.')}.weight"
            zeros = torch.zeros(site.shape)
            assert is_close(after.merged(path, zeros), before.merged(path, zeros), SINGLE)

    def test_what_a_slot_held_before_does_not_show(self, name: str) -> None:
        method = make(name)
        params = trained(method)
        clean, used = (empty_terms(method.model, method.columns(), torch.float64) for _ in range(2))

        method.lower(params, clean)
        method.lower(random_params(method, 4, torch.float64), used)
        method.lower(params, used)

        for key, term in clean.items():
            pairs = zip(term.matrices(), used[key].matrices(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)

    def test_pulling_back_is_the_adjoint_of_lowering(self, name: str) -> None:
        """Terms are linear in what is trained: one inner product shows a wrong place or factor."""
        method = make(name)
        params = trained(method)
        still = params | {name: torch.zeros_like(params[name]) for name in method.shapes()}
        terms, resting, gradients = (
            empty_terms(method.model, method.columns(), torch.float64) for _ in range(3)
        )
        method.lower(params, terms)
        method.lower(still, resting)
        flat_gradients = [matrix for term in gradients.values() for matrix in term.matrices()]
        for i, matrix in enumerate(flat_gradients):
            matrix.copy_(torch.randn(matrix.shape, generator=torch.Generator().manual_seed(i)))
        pulled = {n: torch.zeros(s, dtype=torch.float64) for n, s in method.shapes().items()}

        method.pull_back(gradients, pulled)

        moved = [
            (term.matrices()[i] - resting[key].matrices()[i], gradients[key].matrices()[i])
            for key, term in terms.items()
            for i in range(len(term.matrices()))
        ]
        forward = sum(float((change * slope).sum()) for change, slope in moved)
        backward = sum(float((params[n] * grad).sum()) for n, grad in pulled.items())
        assert forward == pytest.approx(backward, rel=1e-9)

    def test_its_folder_is_read_back_bit_for_bit(self, name: str, tmp_path: Path) -> None:
        method = make(name)
        params = {n: tensor.float() for n, tensor in trained(method).items()}

        manifest = write_adapter(tmp_path, method, params, BASE, 1, {})
        adapter = read_adapter(tmp_path, method.model)

        assert manifest.method == name
        assert adapter.method.config == method.config
        assert all(torch.equal(adapter.params[n], tensor) for n, tensor in params.items())

    @pytest.mark.parametrize("codec", CODECS.names())
    def test_every_codec_takes_it(self, name: str, codec: str, tmp_path: Path) -> None:
        method = make(name)
        params = {n: tensor.float() for n, tensor in trained(method).items()}
        path = tmp_path / "a.tnd"

        options = CODECS[codec].Config.model_validate({})
        path.write_bytes(pack_archive(LoadedAdapter(method, params), CODECS[codec](options), BASE))
        adapter = read_archive(path, method.model).adapter()

        got, want = (
            torch.cat([p[n].flatten() for n in method.file_shapes()])
            for p in (adapter.params, params)
        )
        assert float(torch.cosine_similarity(got, want, dim=0)) > 0.5

    def test_its_options_are_described_and_bounded(self, name: str) -> None:
        schema = PEFT_METHODS[name].Config.model_json_schema()

        for option, facts in schema["properties"].items():
            assert facts.get("description"), option
            is_number = facts.get("type") in ("integer", "number")
            assert not is_number or {"maximum", "exclusiveMaximum"} & set(facts), option

    def test_a_file_with_wild_options_is_refused(self, name: str) -> None:
        config = make(name).peft_config()
        config["r" if "r" in config else "rank"] = 10**6

        with pytest.raises(InvalidInput):
            PEFT_METHODS[name].from_peft_config(config, decoder().config)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (13, 90)])
def test_the_leading_singular_vectors_are_those_of_a_full_decomposition(
    shape: tuple[int, int],
) -> None:
    random = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=random, dtype=torch.float64))
    count = min(shape)
    falling = 0.8 ** torch.arange(count, dtype=torch.float64)
    weight = (u[:, :count] * falling) @ vh[:count]

    got_u, values, got_vh = leading_singular(weight, 5, generator(0, "site"))

    assert is_close(values, falling[:5], 1e-4)
    assert is_close((got_u * values) @ got_vh, (u[:, :5] * falling[:5]) @ vh[:5], 1e-2)
    assert is_close(got_vh @ got_vh.T, torch.eye(5, dtype=torch.float64), EXACT)


@pytest.mark.parametrize("name", ["lora_xs", "svfit"])
def test_frozen_factors_hold_nearly_all_that_rank_can_of_the_weight(name: str) -> None:
    method = make(name, rank=5)
    params = fresh(method)

    for site in sites(method.model, method.modules):
        weight = SiteWeights(decoder())(site)
        basis, values = params[f"{site.name}.lora_A.weight"], torch.linalg.svdvals(weight)
        assert float((weight @ basis.T).norm()) >= 0.99 * float(values[:5].norm())
        length = params[f"{site.name}.lora_B.weight"].norm(dim=0)
        want = values[:5] if name == "lora_xs" else torch.ones(5)
        assert is_close(length, want.double(), 5e-2)


@pytest.mark.parametrize("name", ["lora_xs", "svfit"])
def test_more_singular_vectors_than_there_are_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="v_proj has 16 singular vectors"):
        fresh(make(name, rank=17, target_modules=("v_proj",)))
