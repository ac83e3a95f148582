"""Captured steps and deferred clocks on a card; what they are filled with, on any machine."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import torch

from scheduler.domain.plan import Span
from scheduler.policy.pack_cursor import Direction, Unit
from tests.unit.workers.packed_run import (
    PackedRun,
    compress_heads,
    make_resident,
    random_lora,
)
from tests.unit.workers.tiny_models import make_model
from workers.adapter_arena import AdapterArena, AdapterColumns
from workers.adapter_pool import AdapterPool
from workers.base_weights import WeightFolder, load_weights
from workers.batch_builder import BatchBuilder, InferenceRow
from workers.decoder import Decoder
from workers.padded_step import adapter_runs
from workers.unit_clock import EventClock, HostClock

UNIT = Unit(Direction.FORWARD, 0, 0, 4)


def rows_of(columns: list[AdapterColumns | None]) -> list[InferenceRow]:
    span = Span("s", 0, 1)
    return [InferenceRow(span, None, own) for own in columns]


def test_rows_of_one_adapter_are_one_run() -> None:
    first = AdapterColumns(0, 4, frozenset({"q_proj"}))
    second = AdapterColumns(4, 4, frozenset({"q_proj"}))

    runs = adapter_runs(rows_of([None, first, first, second, None, second]))

    assert [(run.start, run.stop, run.columns.offset) for run in runs] == [
        (1, 3, 0),
        (3, 4, 4),
        (5, 6, 4),
    ]


def test_a_decoder_on_the_cpu_has_no_graphs(tmp_path: Path) -> None:
    run = PackedRun(make_model("llama", tmp_path).decoder, Random(0))

    assert run.runner.graphs is None


def test_the_host_s_clock_knows_a_unit_s_time_at_once() -> None:
    clock = HostClock()
    clock.start()

    ((unit, elapsed_ms),) = clock.lap(UNIT)

    assert unit is UNIT
    assert elapsed_ms >= 0
    assert clock.finish() == []


@pytest.mark.gpu
def test_events_give_every_unit_its_time_once() -> None:
    clock = EventClock()
    clock.start()

    timed = [pair for _ in range(5) for pair in clock.lap(UNIT)] + clock.finish()

    assert len(timed) == 5
    assert all(elapsed_ms >= 0 for _, elapsed_ms in timed)


@pytest.mark.gpu
def test_a_replayed_step_gives_the_logits_of_an_eager_one(tmp_path: Path) -> None:
    decoder = on_card(make_model("llama", tmp_path).decoder, tmp_path)
    run = PackedRun(decoder, Random(1))
    pool = AdapterPool(decoder.arena, max_rank=16)
    method, params = random_lora(decoder.config, 3, 5, ("q_proj", "down_proj"))
    adapter = {name: tensor.to("cuda") for name, tensor in params.items()}
    columns = make_resident(pool, "a", method, adapter)
    streams = [run.add([5 + i] * (6 + i), own) for i, own in enumerate((None, columns, columns))]
    compress_heads(streams[2], decoder.config, Random(2))
    run.runner.cache.storage[1:].normal_()
    graphs = run.runner.graphs
    assert graphs is not None

    for _ in range(2):
        rows = []
        for stream in streams:
            last = len(stream.sequence.token_ids) - 1
            rows.append(
                InferenceRow(Span(stream.sequence.id, last, 1), stream.sequence, stream.columns)
            )
        builder = BatchBuilder(decoder, run.runner.cache)
        for row in rows:
            builder.add_row(row)
        want = decoder.logits(decoder.forward(builder.build()))

        assert torch.allclose(graphs.logits(rows), want, atol=1e-3)


def on_card(decoder: Decoder, folder: Path) -> Decoder:
    """The same weights on the card."""
    device = torch.device("cuda")
    weights = load_weights(WeightFolder(folder), decoder.config, torch.float32, device)
    arena = AdapterArena(decoder.config, 64, torch.float32, device)
    return Decoder(decoder.config, weights, arena)
