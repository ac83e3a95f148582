"""The programs behind orders: coded, merged, expanded and checked versions of a tiny model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional

from scheduler.artefact.check import check_artefact
from scheduler.artefact.coded_file import PREFIX
from scheduler.domain.adapter import ARCHIVE_FILE, MANIFEST_FILE, AdapterManifest
from scheduler.domain.adapter_order import Compression, MergeSource, Merging, OrderFolder
from scheduler.domain.errors import InvalidInput
from scheduler.text import dataset
from scheduler.text.dataset import EncodedDataset
from tests.unit.workers.packed_run import random_lora
from tests.unit.workers.test_adapter_exchange import base_of, save_with_peft, token_ids
from tests.unit.workers.tiny_models import TinyModel, make_model
from workers.adapter_archive import pack_archive
from workers.adapter_file import BaseIdentity, LoadedAdapter, read_adapter, write_adapter
from workers.adapter_folder import read_folder, write_archive_folder
from workers.codecs import CODECS
from workers.tasks.check_archive import check_archive
from workers.tasks.compress import compress
from workers.tasks.expand_archive import expand_archive
from workers.tasks.merge_adapters import merge_adapters
from workers.validation_loss import ValidationLoss

if TYPE_CHECKING:
    from pathlib import Path

    from workers.model import DecoderConfig

BASE = BaseIdentity("tiny", "digest")
MODULES = ("q_proj", "v_proj")
ROOMY = 1 << 30
BF16_LOSS = 0.03  # nats between a bf16 forward and the float32 oracle's


@dataclass
class Bench:
    """A tiny base model and the folder of an order."""

    model: TinyModel
    base: Path
    order: OrderFolder

    @property
    def config(self) -> DecoderConfig:
        """The model's shapes."""
        return self.model.decoder.config

    def source(self, index: int, seed: int, rank: int = 4) -> LoadedAdapter:
        """Write a version as one of the order's sources."""
        method, params = random_lora(self.config, seed, rank, MODULES)
        write_adapter(self.order.source(index), method, params, BASE, 0, {})
        return LoadedAdapter(method, params)

    def valid(self, seed: int = 0) -> list[list[int]]:
        """Write a validation set; all but the first token of an example are learned."""
        random = np.random.default_rng(seed)
        examples = [random.integers(0, 90, size=n).tolist() for n in (9, 5, 17)]
        offsets = np.cumsum([0, *map(len, examples)])
        weights = np.concatenate([[0.0] + [1.0] * (len(e) - 1) for e in examples])
        ids = np.concatenate(examples)
        dataset.write(self.order.valid, EncodedDataset(offsets, ids, weights))
        return examples

    def ask(self, options: Compression | Merging) -> None:
        """Write the order's options."""
        self.order.options.write_text(options.model_dump_json())

    def recipe(self) -> dict[str, Any]:
        """What the program tells about its work."""
        read: dict[str, Any] = json.loads(self.order.recipe.read_bytes())
        return read


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    model = make_model("llama", tmp_path / "base")
    root = tmp_path / "order"
    root.mkdir()
    return Bench(model, tmp_path / "base", OrderFolder(root))


def archive_of(bench: Bench, codec: str = "compeft", rank: int = 4) -> bytes:
    method, params = random_lora(bench.config, 1, rank, MODULES)
    coder = CODECS[codec](CODECS[codec].Config())
    return pack_archive(LoadedAdapter(method, params), coder, BASE)


class TestValidationLoss:
    def test_it_is_the_mean_over_trained_tokens_of_the_whole_model(self, bench: Bench) -> None:
        examples = bench.valid()
        loss = ValidationLoss(bench.base, bench.config, bench.order.valid, 4)
        method, params = random_lora(bench.config, 1, 4, MODULES, scale=0.0)

        measured = loss.of(LoadedAdapter(method, params))

        nats = []
        for example in examples:
            ids = torch.tensor([example])
            with torch.no_grad():
                logits = bench.model.oracle(ids).logits[0, :-1].float()
            nats.append(functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
        assert measured == pytest.approx(float(torch.cat(nats).mean()), abs=BF16_LOSS)

    def test_one_adapter_leaves_no_trace_in_the_next(self, bench: Bench) -> None:
        bench.valid()
        loss = ValidationLoss(bench.base, bench.config, bench.order.valid, 8)
        small, large = (
            LoadedAdapter(*random_lora(bench.config, seed, rank, MODULES))
            for seed, rank in ((1, 2), (2, 8))
        )

        alone = loss.of(small)
        loss.of(large)

        assert loss.of(small) == alone

    def test_a_file_that_trains_on_nothing_is_refused(self, bench: Bench) -> None:
        empty = EncodedDataset(np.array([0, 3]), np.array([1, 2, 3]), np.zeros(3))
        dataset.write(bench.order.valid, empty)

        with pytest.raises(InvalidInput, match="trains on no token"):
            ValidationLoss(bench.base, bench.config, bench.order.valid, 4)


class TestCompress:
    @pytest.mark.parametrize("codec", CODECS.names())
    def test_every_codec_makes_a_version_that_is_read_back(self, codec: str, bench: Bench) -> None:
        bench.source(0, seed=1)
        bench.ask(Compression(codec=codec))

        compress(bench.order, bench.base)

        folder = bench.order.out
        manifest = AdapterManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
        assert set(manifest.files) == {"adapter_config.json", ARCHIVE_FILE}
        assert bench.recipe()["codec"] == codec
        assert bench.recipe()["bytes"] == (folder / ARCHIVE_FILE).stat().st_size
        original = read_adapter(bench.order.source(0), bench.config)
        assert read_folder(folder, bench.config).params.keys() == original.params.keys()

    def test_a_broken_guard_makes_nothing(self, bench: Bench) -> None:
        bench.source(0, seed=1)
        bench.valid()
        bench.ask(Compression(config={"density": 0.01, "alpha": 90.0}, guard=0.0))

        with pytest.raises(InvalidInput, match="the guard allows 0 more"):
            compress(bench.order, bench.base)

        assert not bench.order.out.exists()

    def test_a_search_stays_within_its_guard(self, bench: Bench) -> None:
        bench.source(0, seed=1)
        bench.valid()
        search = {"densities": [0.1, 0.5], "alphas": [None], "fallbacks": ["int8"], "guard": 0.05}
        bench.ask(Compression(search=search))

        compress(bench.order, bench.base)

        recipe = bench.recipe()
        assert recipe["valid_loss"] <= recipe["valid_loss_uncompressed"] + 0.05

    def test_what_is_small_can_be_made_smaller(self, bench: Bench) -> None:
        write_archive_folder(bench.order.source(0), archive_of(bench, "none"), bench.config)
        bench.ask(Compression(config={"density": 0.1}))

        compress(bench.order, bench.base)

        assert bench.recipe()["ratio_to_16_bit"] > 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
class TestPeft:
    @pytest.mark.parametrize("use_rslora", [False, True])
    def test_what_peft_saved_is_coded_without_loss_and_loaded_by_peft_again(
        self, bench: Bench, tmp_path: Path, use_rslora: bool
    ) -> None:
        source = bench.order.source(0)
        want = save_with_peft(bench.model, source, use_rslora=use_rslora)
        (source / "README.md").unlink()
        check_artefact(source, base_of(bench.model))
        bench.ask(Compression(codec="none"))

        compress(bench.order, bench.base)
        expand_archive(bench.order.out, bench.base, tmp_path / "large")

        loaded = PeftModel.from_pretrained(bench.model.oracle, str(tmp_path / "large"))
        with torch.no_grad():
            assert torch.equal(loaded(token_ids()).logits, want)


class TestMerge:
    def test_weights_given_none_are_equal(self, bench: Bench) -> None:
        adapters = [bench.source(0, seed=1), bench.source(1, seed=2)]
        bench.ask(merging("linear"))

        merge_adapters(bench.order, bench.base)

        assert [source["weight"] for source in bench.recipe()["sources"]] == [0.5, 0.5]
        assert read_adapter(bench.order.out, bench.config).method.rank == 4
        assert len(adapters) == 2

    def test_a_weight_of_zero_is_a_weight(self, bench: Bench) -> None:
        bench.source(0, seed=1)
        bench.source(1, seed=2)
        bench.ask(merging("linear", weights=(1.0, 0.0)))

        merge_adapters(bench.order, bench.base)

        assert [source["weight"] for source in bench.recipe()["sources"]] == [1.0, 0.0]

    def test_lorahub_learns_weights_no_worse_than_none(self, bench: Bench) -> None:
        bench.source(0, seed=1)
        bench.source(1, seed=2)
        bench.valid()
        bench.ask(merging("lorahub", {"trials": 8}))

        merge_adapters(bench.order, bench.base)

        recipe = bench.recipe()
        assert "valid_loss" in recipe
        assert [source["weight"] for source in recipe["sources"]] != [0.5, 0.5]

    def test_a_rank_over_the_workers_limit_is_refused(self, bench: Bench) -> None:
        bench.source(0, seed=1)
        bench.source(1, seed=2)
        bench.ask(merging("cat", max_rank=7))

        with pytest.raises(InvalidInput, match="rank 8"):
            merge_adapters(bench.order, bench.base)


def merging(
    method: str,
    config: dict[str, object] | None = None,
    weights: tuple[float, float] | None = None,
    max_rank: int = 64,
) -> Merging:
    """A merge of two sources."""
    given = weights or (None, None)
    return Merging(
        method=method, config=config or {}, max_rank=max_rank,
        sources=tuple(MergeSource(adapter_id="a", version=i + 1, weight=w)
                      for i, w in enumerate(given)),
    )  # fmt: skip


class TestStrangers:
    def test_equal_archives_become_folders_of_equal_digest(
        self, bench: Bench, tmp_path: Path
    ) -> None:
        content = archive_of(bench)
        write_archive_folder(tmp_path / "ours", content, bench.config)
        theirs = received(tmp_path / "theirs", content)

        check_archive(theirs, bench.base, "digest", 64, ROOMY)

        read = [
            AdapterManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
            for folder in (tmp_path / "ours", theirs)
        ]
        assert read[0] == read[1]

    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (("other", 64, ROOMY), "other weights"),
            (("digest", 3, ROOMY), "limit is 3"),
            (("digest", 64, 1000), "once it is expanded"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, bench: Bench, tmp_path: Path, limits: tuple[str, int, int], reason: str
    ) -> None:
        folder = received(tmp_path / "theirs", archive_of(bench))

        with pytest.raises(InvalidInput, match=reason):
            check_archive(folder, bench.base, *limits)

        assert [path.name for path in folder.iterdir()] == [ARCHIVE_FILE]

    @pytest.mark.parametrize("cut", [5, PREFIX.size + 3, -1])
    def test_a_torn_one_is_refused(self, bench: Bench, tmp_path: Path, cut: int) -> None:
        folder = received(tmp_path / "theirs", archive_of(bench)[:cut])

        with pytest.raises(InvalidInput):
            check_archive(folder, bench.base, "digest", 64, ROOMY)

    def test_expanded_it_holds_the_same_numbers(self, bench: Bench, tmp_path: Path) -> None:
        write_archive_folder(tmp_path / "small", archive_of(bench), bench.config)

        expand_archive(tmp_path / "small", bench.base, tmp_path / "large")

        small = read_folder(tmp_path / "small", bench.config)
        large = read_adapter(tmp_path / "large", bench.config)
        assert all(torch.equal(large.params[name], small.params[name]) for name in small.params)


def received(folder: Path, content: bytes) -> Path:
    folder.mkdir()
    (folder / ARCHIVE_FILE).write_bytes(content)
    return folder
