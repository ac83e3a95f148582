"""Lanes on CUDA's streams, by what CUDA is told and when; nothing here needs a card."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import TYPE_CHECKING

import pytest
import torch

from scheduler.domain.plan import LaneUnits
from tests.unit.workers.fake_cuda import FakeCuda
from tests.unit.workers.tiny_models import CPU, make_model
from tests.unit.workers.train_bench import NUM_BLOCKS, Bench, random_examples
from workers.activations import SaveLevel
from workers.job_desk import timed_units
from workers.lane_device import StreamLane, ThreadLane, lane_device, step_stream
from workers.side_lane import SideLane
from workers.trainer import Trainer
from workers.unit_clock import MAX_QUEUED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scheduler.policy.pack_cursor import Unit
    from workers.unit_clock import TimedUnit

NUM_UNITS = 5
LANE = LaneUnits("job0", NUM_UNITS)


def whole_lane(trainer: Trainer) -> list[TimedUnit]:
    return list(timed_units(trainer, LANE, lambda: True))


@pytest.fixture
def bench() -> Bench:
    """A trainer whose only job has a pack in memory."""
    bench = Bench(make_model("llama", Path(mkdtemp())).decoder, Random(3), SaveLevel.FULL)
    bench.start_job(4, ("q_proj", "down_proj"), random_examples(Random(3)))
    bench.trainer.demands(NUM_BLOCKS)
    return bench


@pytest.fixture
def diary(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What CUDA is told while the trainer's units run, themselves included."""
    cuda = FakeCuda()
    run_units = Trainer.run_units

    def noted(trainer: Trainer, lane: LaneUnits, may_go_on: Callable[[], bool]) -> Iterator[Unit]:
        for unit in run_units(trainer, lane, may_go_on):
            cuda.diary.append(f"unit on {cuda.current.name}")
            yield unit

    monkeypatch.setattr(Trainer, "run_units", noted)
    diary = cuda.install(monkeypatch)
    bench.trainer.side = SideLane(StreamLane(CPU))
    return diary


def test_a_lane_begins_after_the_engine_and_ends_with_the_device(
    bench: Bench, diary: list[str]
) -> None:
    side = bench.trainer.side

    side.begin(LANE, partial(whole_lane, bench.trainer))
    side.finish()

    ((_, future),) = side.take_ended()
    assert len(future.result()) == NUM_UNITS
    assert diary[:2] == ["training waits for engine", "event on training"]
    assert diary[-1] == "host waits for training"
    issued = [line for line in diary[2:] if line != "host waits for an event"]
    assert issued[:-1] == ["unit on training", "event on training"] * NUM_UNITS


def test_the_host_runs_a_few_units_ahead_of_the_device(bench: Bench, diary: list[str]) -> None:
    side = bench.trainer.side

    side.begin(LANE, partial(whole_lane, bench.trainer))
    side.finish()

    queued = 0
    for line in diary:
        queued += line.startswith("unit")
        queued -= line == "host waits for an event"
        assert queued <= MAX_QUEUED + 1
    assert queued == 0


def test_a_lane_that_raises_ends_once_the_device_is_done_with_what_it_gave(
    bench: Bench, diary: list[str]
) -> None:
    side = bench.trainer.side

    def crash() -> list[TimedUnit]:
        timed = timed_units(bench.trainer, LANE, lambda: True)
        raise ZeroDivisionError(next(timed))

    side.begin(LANE, crash)
    side.finish()

    assert side.has_failed("job0")
    assert diary.count("unit on training") == MAX_QUEUED + 1
    assert diary[-1] == "host waits for training"
    side.discard("job0")
    assert side.take_ended() == []


def test_units_in_turn_stand_between_what_the_engine_gives_before_and_after(
    bench: Bench, diary: list[str]
) -> None:
    with bench.trainer.side.device.turn():
        whole_lane(bench.trainer)

    assert diary[0] == "training waits for engine"
    assert diary.count("unit on training") == NUM_UNITS
    assert diary[-1] == "engine waits for training"


def test_a_turn_that_raises_is_waited_for_too(bench: Bench, diary: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), bench.trainer.side.device.turn():
        raise ZeroDivisionError

    assert diary == ["training waits for engine", "engine waits for training"]


@pytest.mark.gpu
def test_a_lane_on_a_card_finds_what_was_given_before_it_and_is_done_when_it_ends() -> None:
    device = torch.device("cuda")
    lanes, thread = StreamLane(device), ThreadPoolExecutor(1)
    with torch.cuda.stream(step_stream(device)):
        x = torch.zeros(1 << 26, device=device)
        for _ in range(100):
            x += 1

        lanes.begin()
        total = thread.submit(lanes.run, lambda: x.double().sum()).result()

        assert total.item() == 100 * x.numel()


def test_a_step_beside_a_lane_has_the_threads_that_the_lane_leaves_it() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    lanes, seen = ThreadLane(), []

    for is_beside in (True, False):
        with lanes.step(is_beside=is_beside):
            seen.append(torch.get_num_threads())
    torch.set_num_threads(before)

    assert lanes.can_share
    assert [*seen, lanes.lane_threads] == [2, 3, 1]


def test_a_lane_that_is_waited_for_ends_with_its_unit_in_work(bench: Bench) -> None:
    trainer, in_work, goes_on = bench.trainer, threading.Event(), threading.Event()

    def lane() -> list[TimedUnit]:
        timed = timed_units(trainer, LANE, trainer.side.may_go_on)
        first = next(timed)
        in_work.set()
        goes_on.wait()
        return [first, *timed]

    trainer.side.begin(LANE, lane)
    in_work.wait()
    threading.Timer(0.05, goes_on.set).start()
    trainer.finish_lane()

    ((_, future),) = trainer.side.take_ended()
    assert len(future.result()) == 1
    assert trainer.side.may_go_on()


def test_nothing_runs_beside_steps_on_a_single_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda().install(monkeypatch)

    assert not lane_device(CPU).can_share  # tests have one
    assert lane_device(torch.device("cuda")).can_share
