"""A job whose method needs the base's weights is prepared beside the engine before it trains."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.errors import InvalidInput
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import StartJob
from scheduler.text import dataset
from tests.unit.workers.fake_cuda import FakeCuda
from tests.unit.workers.tiny_models import make_model
from tests.unit.workers.train_bench import NUM_BLOCKS, Bench, encode, random_examples
from workers import job_preparer
from workers.activations import SaveLevel
from workers.job_checkpoint import read_checkpoint
from workers.job_preparer import JobPreparer
from workers.lane_device import StreamLane
from workers.param_shard import ParamShard

if TYPE_CHECKING:
    from workers.active_job import ActiveJob
    from workers.flat_params import FlatParams
    from workers.peft_method import SiteWeight


def begin(bench: Bench, rank: int = 3, resume_from: str | None = None) -> ActiveJob:
    """Order a job of LoRA-XS."""
    data = bench.folder / "data.bin"
    dataset.write(data, encode(random_examples(Random(1))))
    spec = FinetuneSpec(base_model="m", method="lora_xs", method_config={"rank": rank}, n_epochs=1)
    bench.trainer.start(
        StartJob(
            job_id="job",
            tenant_id="t",
            epoch=1,
            spec=spec,
            train_path=str(data),
            checkpoint_root=str(bench.folder / "job"),
            resume_from=resume_from,
        )
    )
    return bench.trainer.active["job"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(make_model("llama", tmp_path).decoder, Random(0), SaveLevel.FULL)


def test_it_asks_for_nothing_until_it_is_prepared(bench: Bench) -> None:
    active = begin(bench)
    assert bench.trainer.demands(NUM_BLOCKS) == []
    assert active.preparing is not None
    wait([active.preparing])
    assert active.waits_for_work

    bench.trainer.advance("job")

    assert len(bench.trainer.demands(NUM_BLOCKS)) == 1
    bench.finish()


def test_on_cuda_it_finds_what_the_engine_has_given_and_is_ready_with_the_device(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    cuda.install(monkeypatch)
    monkeypatch.setattr(job_preparer, "lane_device", StreamLane)
    bench.trainer.preparer = JobPreparer(bench.trainer.decoder)
    make_fixed = ParamShard.make_fixed

    def noted(shard: ParamShard, into: FlatParams, weight_of: SiteWeight) -> None:
        cuda.diary.append(f"made on {cuda.current.name}")
        make_fixed(shard, into, weight_of)

    monkeypatch.setattr(ParamShard, "make_fixed", noted)
    active = begin(bench)
    assert active.preparing is not None
    active.preparing.result()

    assert cuda.diary == [
        "training waits for engine",
        "made on training",
        "host waits for training",
    ]


def test_stopped_before_that_it_leaves_no_checkpoint_and_holds_nothing(bench: Bench) -> None:
    begin(bench)

    bench.trainer.stop("job", checkpoint=True)
    bench.writer.close()

    assert not (bench.folder / "job").exists()
    assert bench.pool.resident == ()


def test_what_a_checkpoint_holds_is_not_made_again(bench: Bench) -> None:
    first = begin(bench)
    assert first.preparing is not None
    wait([first.preparing])
    bench.trainer.advance("job")
    bench.trainer.stop("job", checkpoint=True)
    bench.writer.close()
    (folder,) = (bench.folder / "job").iterdir()

    again = begin(bench, resume_from=str(folder))

    saved = read_checkpoint(folder, first.job.shard.whole).params
    assert again.preparing is None
    assert all(torch.equal(again.job.params.views[name], saved[name]) for name in saved)
    assert any(saved[name].any() for name in first.job.shard.whole.fixed_shapes())


def test_a_rank_that_the_base_does_not_have_fails_the_job(bench: Bench) -> None:
    active = begin(bench, rank=16)  # v_proj has 16 outputs
    assert active.preparing is not None
    assert active.preparing.exception(timeout=60) is None
    bench.trainer.drop("job")
    bench.pool.max_rank = 17
    active = begin(bench, rank=17)
    assert active.preparing is not None
    wait([active.preparing])

    with pytest.raises(InvalidInput, match="singular vectors, fewer than rank 17"):
        bench.trainer.advance("job")
