"""Every way to merge: shapes, determinism, identity, and that weights matter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from scheduler.domain.errors import InvalidInput
from tests.unit.workers.tiny_adapters import make_lora, tiny_config
from workers.adapter_file import LoadedAdapter
from workers.lora_factors import adapter_of, norm, sites_of, truncated, truncated_factors
from workers.merge import Merge
from workers.merges import MERGES
from workers.merges.lego import Lego
from workers.merges.lines import Lines
from workers.merges.lorahub import LoraHub

NAMES = MERGES.names()
KEEPS_ALL = {"density": 1.0}  # pruning and dropping are no identity otherwise
TOLERANCE = 1e-5  # of float32 products


def make(name: str, **options: Any) -> Merge:
    return MERGES[name](MERGES[name].Config.model_validate(options))


def make_whole(name: str) -> Merge:
    """A merge that loses nothing of a single adapter."""
    has_density = "density" in MERGES[name].Config.model_fields
    return make(name, **(KEEPS_ALL if has_density else {}))


def adapters_for(name: str, count: int = 3, **options: Any) -> list[LoadedAdapter]:
    shared = {"init_seed": 99} if MERGES[name].shares_a else {}
    return [make_lora(seed, **shared, **options) for seed in range(count)]


def updates(adapter: LoadedAdapter) -> dict[str, torch.Tensor]:
    return {site: factors.update() for site, factors in sites_of(adapter).items()}


def gap(a: LoadedAdapter, b: LoadedAdapter) -> float:
    """Largest difference of the two updates, relative to the first's largest entry."""
    left, right = updates(a), updates(b)
    assert left.keys() == right.keys()
    largest = max(float(u.abs().max()) for u in left.values())
    return max(float((left[s] - right[s]).abs().max()) for s in left) / largest


def weighted_update(adapters: list[LoadedAdapter], weights: list[float]) -> dict[str, torch.Tensor]:
    parts = [updates(adapter) for adapter in adapters]
    return {
        site: sum((w * p[site] for w, p in zip(weights, parts, strict=True)), torch.zeros(()))
        for site in parts[0]
    }


def assert_update(merged: LoadedAdapter, want: dict[str, torch.Tensor]) -> None:
    for site, update in updates(merged).items():
        largest = float(want[site].abs().max())
        assert float((update - want[site]).abs().max()) <= TOLERANCE * largest


@pytest.mark.parametrize("name", NAMES)
class TestEveryMerge:
    def test_the_result_is_an_adapter_of_the_same_base(self, name: str) -> None:
        adapters = adapters_for(name)

        merged = make(name).merge(adapters, [0.5, 0.3, 0.2])

        assert {n: tuple(t.shape) for n, t in merged.params.items()} == merged.method.shapes()
        assert merged.method.modules == adapters[0].method.modules
        assert merged.method.config.alpha == merged.method.rank
        assert all(t.dtype == torch.float32 for t in merged.params.values())
        assert all(bool(torch.isfinite(t).all()) for t in merged.params.values())

    def test_the_same_adapters_give_the_same_numbers(self, name: str) -> None:
        first = make(name).merge(adapters_for(name), [0.5, 0.3, 0.2])
        second = make(name).merge(adapters_for(name), [0.5, 0.3, 0.2])

        assert all(torch.equal(second.params[n], t) for n, t in first.params.items())

    def test_one_adapter_of_weight_one_stays_itself(self, name: str) -> None:
        (adapter,) = adapters_for(name, 1)

        merged = make_whole(name).merge([adapter], [1.0])

        assert gap(adapter, merged) < TOLERANCE

    def test_weights_change_the_result(self, name: str) -> None:
        adapters = adapters_for(name)

        even = make(name).merge(adapters, [0.4, 0.4, 0.2])
        other = make(name).merge(adapters, [0.6, 0.2, 0.2])

        assert gap(even, other) > 1e-3

    def test_the_adapters_are_left_alone(self, name: str) -> None:
        adapters = adapters_for(name)

        make(name).merge(adapters, [0.5, 0.3, 0.2])

        for adapter, untouched in zip(adapters, adapters_for(name), strict=True):
            assert all(torch.equal(untouched.params[n], t) for n, t in adapter.params.items())

    def test_a_site_that_one_adapter_lacks_is_the_others(self, name: str) -> None:
        shared = {"init_seed": 99} if MERGES[name].shares_a else {}
        wide = make_lora(1, modules=("q_proj", "v_proj"), **shared)
        narrow = make_lora(2, modules=("q_proj",), **shared)

        merged = make_whole(name).merge([wide, narrow], [1.0, 1.0])

        assert merged.method.modules == {"q_proj", "v_proj"}
        assert float(norm(sites_of(merged))) > 0

    @pytest.mark.parametrize(
        "weights", [[], [1.0], [1.0, float("nan"), 1.0], [float("inf"), 1.0, 1.0]]
    )
    def test_weights_that_do_not_fit_are_refused(self, name: str, weights: list[float]) -> None:
        with pytest.raises(InvalidInput):
            make(name).merge(adapters_for(name), weights)

    def test_nothing_to_merge_is_refused(self, name: str) -> None:
        with pytest.raises(InvalidInput):
            make(name).merge([], [])

    def test_every_option_has_a_description(self, name: str) -> None:
        properties = MERGES[name].Config.model_json_schema().get("properties", {})

        assert all("description" in schema for schema in properties.values())


@pytest.mark.parametrize("name", ["cat", "task_arithmetic"])
def test_exact_merges_are_the_weighted_sum_of_any_ranks(name: str) -> None:
    adapters = [make_lora(1, rank=3), make_lora(2, rank=5, alpha=3.0)]

    merged = make(name).merge(adapters, [0.7, -0.4])

    assert merged.method.rank == 8
    assert_update(merged, weighted_update(adapters, [0.7, -0.4]))


def test_the_coefficient_of_task_arithmetic_scales_the_sum() -> None:
    adapters = adapters_for("task_arithmetic", 2)

    merged = make("task_arithmetic", coefficient=0.3).merge(adapters, [1.0, 1.0])

    assert_update(merged, weighted_update(adapters, [0.3, 0.3]))


@pytest.mark.parametrize("name", ["svd", "task_arithmetic"])
def test_a_cut_sum_is_the_best_of_its_rank(name: str) -> None:
    adapters = adapters_for(name, 3)
    want = weighted_update(adapters, [1.0, 1.0, 1.0])

    merged = make(name, rank=5).merge(adapters, [1.0, 1.0, 1.0])

    assert merged.method.rank == 5
    assert_update(merged, {site: truncated(update, 5).update() for site, update in want.items()})


def test_thin_factors_are_cut_as_the_dense_update_is() -> None:
    factors = next(iter(sites_of(make_lora(1, rank=6)).values()))

    ours, dense = truncated_factors(factors, 4), truncated(factors.update(), 4)

    assert float((ours.update() - dense.update()).abs().max()) < 1e-5
    assert torch.allclose(ours.a_RI @ ours.a_RI.T, torch.eye(4), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune", "lorahub"]
)
def test_factors_of_different_ranks_cannot_be_added(name: str) -> None:
    with pytest.raises(InvalidInput, match="one rank"):
        make(name).merge([make_lora(1, rank=3), make_lora(2, rank=5)], [1.0, 1.0])


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties", "magnitude_prune"])
def test_their_dense_updates_can(name: str) -> None:
    adapters = [make_lora(1, rank=3), make_lora(2, rank=5)]

    merged = make(name, space="update", rank=7).merge(adapters, [1.0, 1.0])

    assert merged.method.rank == 7


def test_a_rank_over_the_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="rank 260"):
        make("cat").merge([make_lora(1, rank=130), make_lora(2, rank=130)], [1.0, 1.0])


def test_adapters_of_different_base_models_are_refused() -> None:
    other = make_lora(2)
    name = next(n for n in other.params if "lora_B" in n)
    other.params[name] = torch.zeros(7, 4)

    with pytest.raises(InvalidInput, match="different base"):
        make("cat").merge([make_lora(1), other], [1.0, 1.0])


class TestDare:
    def test_what_is_kept_grows_so_that_the_mean_stays(self) -> None:
        adapter = make_lora(1, modules=("q_proj",))

        runs = []
        for seed in range(50):
            merge = make("dare_linear", space="update", rank=48, density=0.5, seed=seed)
            runs.append(updates(merge.merge([adapter], [1.0])))

        for site, want in updates(adapter).items():
            mean = torch.stack([run[site] for run in runs]).mean(0)
            assert float((mean - want).norm() / want.norm()) < 3 / math.sqrt(len(runs))

    def test_another_seed_keeps_other_entries(self) -> None:
        adapters = adapters_for("dare_ties")

        first = make("dare_ties", seed=1).merge(adapters, [1.0] * 3)

        assert gap(first, make("dare_ties", seed=2).merge(adapters, [1.0] * 3)) > 1e-2


class TestLego:
    def test_the_order_of_the_adapters_does_not_matter(self) -> None:
        adapters = [make_lora(1, rank=3), make_lora(2, rank=5), make_lora(3, rank=4)]

        one = make("lego", rank=4).merge(adapters, [0.5, 0.3, 0.2])
        other = make("lego", rank=4).merge(adapters[::-1], [0.2, 0.3, 0.5])

        assert gap(one, other) < TOLERANCE

    def test_with_a_cluster_for_every_unit_it_is_the_sum(self) -> None:
        adapters = [make_lora(1, rank=3), make_lora(2, rank=5)]

        merged = make("lego", rank=8).merge(adapters, [0.7, 0.4])

        assert_update(merged, weighted_update(adapters, [0.7, 0.4]))

    def test_the_same_unit_twice_is_one_cluster(self) -> None:
        adapter = make_lora(1, rank=4)

        merged = make("lego", rank=4).merge([adapter, adapter], [1.0, 1.0])

        want = {site: math.sqrt(2) * update for site, update in updates(adapter).items()}
        assert_update(merged, want)

    def test_how_a_unit_is_split_between_its_factors_does_not_matter(self) -> None:
        adapters = [make_lora(1), make_lora(2)]
        scaled = LoadedAdapter(
            adapters[1].method,
            {n: t * (8.0 if "lora_A" in n else 0.125) for n, t in adapters[1].params.items()},
        )

        merge = Lego(Lego.Config(rank=5))

        assert gap(merge.merge(adapters, [1, 1]), merge.merge([adapters[0], scaled], [1, 1])) < 1e-4


class TestLines:
    def test_each_layer_has_its_factor(self) -> None:
        adapter = make_lora(1)

        merged = make("lines", alpha=0.4, beta=0.6).merge([adapter], [1.0])

        for site, update in updates(merged).items():
            factor = 0.4 + 0.6 * int(site.split(".")[4]) / 2  # layers 0, 1, 2
            assert torch.allclose(update, factor * updates(adapter)[site], atol=1e-6)

    def test_left_to_itself_it_averages_shallow_layers_and_adds_deep_ones(self) -> None:
        adapters = adapters_for("lines", 2)

        merged = Lines(Lines.Config()).merge(adapters, [1.0, 1.0])

        plain = weighted_update(adapters, [1.0, 1.0])
        site = next(s for s in plain if ".layers.0." in s)
        assert torch.allclose(updates(merged)[site], plain[site] / 2, atol=1e-6)
        site = site.replace(".layers.0.", ".layers.2.")
        assert torch.allclose(updates(merged)[site], plain[site], atol=1e-6)


class TestFedSvd:
    def test_the_refactoring_is_exact_and_a_has_orthonormal_rows(self) -> None:
        clients = adapters_for("fedsvd", 3)

        merged = make("fedsvd").merge(clients, [10, 20, 30])

        assert_update(merged, weighted_update(clients, [1 / 6, 2 / 6, 3 / 6]))
        for factors in sites_of(merged).values():
            assert torch.allclose(factors.a_RI @ factors.a_RI.T, torch.eye(4), atol=1e-5)

    def test_clients_that_trained_their_own_a_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match="one A"):
            make("fedsvd").merge([make_lora(1), make_lora(2)], [1, 1])

    @pytest.mark.parametrize("shares", [[0.0, 0.0], [-1.0, 2.0]])
    def test_shares_that_are_none_are_refused(self, shares: list[float]) -> None:
        with pytest.raises(InvalidInput, match="shares"):
            make("fedsvd").merge(adapters_for("fedsvd", 2), shares)


class TestLoraHub:
    def score(self, adapter: LoadedAdapter) -> float:
        """Closeness to a mixture that the hub can compose."""
        hub = adapters_for("lorahub")
        want = updates(make("lorahub").merge(hub, [0.8, -0.3, 0.0]))
        have = updates(adapter)
        gaps = [float((have[s] - want[s]).square().sum()) for s in want]
        return -math.fsum(gaps) / math.fsum(float(u.square().sum()) for u in want.values())

    def test_it_finds_a_mixture_by_its_score_alone(self) -> None:
        hub = LoraHub(LoraHub.Config(trials=300, penalty=0.0))

        found = hub.learn(adapters_for("lorahub"), self.score)

        sign = math.copysign(1, found.weights[0])  # (-A)(-B) is the same adapter
        assert [sign * w for w in found.weights] == pytest.approx([0.8, -0.3, 0.0], abs=0.02)
        assert found.score > -1e-3

    def test_a_few_trials_help_and_are_the_same_every_time(self) -> None:
        hub = LoraHub(LoraHub.Config(trials=40))

        found = hub.learn(adapters_for("lorahub"), self.score)

        assert found.score > -0.5  # nothing at all scores -1
        assert found.weights == hub.learn(adapters_for("lorahub"), self.score).weights
        again = hub.merge(adapters_for("lorahub"), found.weights)
        assert all(torch.equal(found.adapter.params[n], t) for n, t in again.params.items())

    def test_no_more_adapters_are_scored_than_allowed_and_weights_stay_in_bounds(self) -> None:
        calls = []

        def count(adapter: LoadedAdapter) -> float:
            calls.append(adapter)
            return float("nan")

        found = LoraHub(LoraHub.Config(trials=17, bound=0.1)).learn(adapters_for("lorahub"), count)

        assert len(calls) == 17
        assert all(abs(w) <= 0.1 for w in found.weights)


def test_padding_to_one_rank_keeps_the_update() -> None:
    sites = sites_of(make_lora(1, rank=3, modules=("q_proj",)))
    more = sites_of(make_lora(2, rank=5, modules=("v_proj",)))

    merged = adapter_of(sites | more, tiny_config())

    assert merged.method.rank == 5
    for site, factors in (sites | more).items():
        assert torch.allclose(updates(merged)[site], factors.update(), atol=1e-6)
