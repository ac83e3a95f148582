"""A thousand adapters behind a few slots: what changing places costs.

    python -m benchmarks.adapters --out DIR

64 closed-loop streams on the 80M model; adapters of rank 8 on all linears, 64 of which fit into the
slots. The rate with 1 to 1,000 of them, drawn uniformly or by Zipf's law, plain or coded by
ComPEFT, against the bare base and one adapter, each measured before and after every cell.

Every cell has adapters that the engine has never seen. They have names and digests of their own
and share the contents of a few: for the engine a thousand adapters, for the disk not as many bytes,
so what is read comes from the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.bench_model import BASE, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.load import Load, StopRule
from benchmarks.peers.prompts import lengths
from benchmarks.result_file import RESULTS, ResultFile
from benchmarks.scripted_connection import ScriptedConnection
from benchmarks.spread import percentile
from benchmarks.step_record import RecordingMeter
from scheduler.domain.adapter import ARCHIVE_FILE
from workers.adapter_archive import pack_archive
from workers.adapter_file import BaseIdentity, read_adapter
from workers.adapter_loader import Load as AdapterLoad
from workers.adapter_shelf import AdapterShelf
from workers.architecture import decoder_config
from workers.codecs.compeft import Compeft
from workers.hf_config import read_hf_config

NUM_ADAPTERS, NUM_CONTENTS = 1000, 8
STREAMS, RANK, SLOTS = 64, 8, 32  # a slot is counted at rank 16: twice as many of rank 8 fit
RAM_BYTES = 512 << 20
RATES = (
    "output_tokens_per_s",
    "output_tokens_per_cpu_s",
)  # the latter is steadier on a busy machine

Popularity = Literal["uniform", "zipf"]
Form = Literal["plain", "compeft"]


@dataclass(frozen=True, slots=True)
class Cell:
    """One phase: how many adapters, how popular, in which form; 0 is the bare base."""

    num_adapters: int
    popularity: Popularity = "uniform"
    form: Form = "plain"

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{self.num_adapters} {self.popularity} {self.form}"


REFERENCES = (Cell(0), Cell(1))
CELLS = (
    Cell(16),
    Cell(64),
    Cell(128),
    Cell(NUM_ADAPTERS),
    Cell(NUM_ADAPTERS, "zipf"),
    Cell(NUM_ADAPTERS, form="compeft"),
    Cell(NUM_ADAPTERS, "zipf", "compeft"),
)


class CrowdedConnection(ScriptedConnection):
    """Callers that draw the adapter of every request, and ask and hear little."""

    def __init__(self) -> None:
        super().__init__(())
        self.popularity: Popularity = "uniform"
        self._random = np.random.default_rng(5)

    def lengths(self, index: int) -> tuple[int, int]:
        """Short ones, so that adapters change often."""
        prompt_tokens, output_tokens = lengths(index)
        return prompt_tokens // 8, output_tokens // 3

    def place(self, index: int, load: Load) -> int:
        """See ScriptedConnection."""
        del index
        ranks = np.arange(1, load.num_adapters + 1)
        weights = 1 / ranks if self.popularity == "zipf" else np.ones(load.num_adapters)
        return int(self._random.choice(load.num_adapters, p=weights / weights.sum()))


class LoadMeter(RecordingMeter):
    """Also keeps how long each adapter was on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.loads_ms: dict[str, list[float]] = {"disk": [], "ram": []}

    def count_load(self, load: AdapterLoad) -> None:
        """See EngineMeter."""
        super().count_load(load)
        tier = "ram" if load.was_shelved else "disk"
        self.loads_ms[tier].append((time.monotonic() - load.began_s) * 1e3)


class Crowd:
    """One engine, and adapters of both forms under as many names as a cell wants."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = make_bench_model(root, NUM_CONTENTS, RANK)
        self._code_contents()
        self.connection = CrowdedConnection()
        self.bench = Bench(
            self.model,
            self.connection,
            adapter_slots=SLOTS,
            adapter_ram_bytes=RAM_BYTES,
            max_num_sequences=STREAMS,
            num_threads=torch.get_num_threads(),
        )
        self.meter = LoadMeter()
        engine = self.bench.engine
        self.bench.meter = engine.meter = engine.requests.meter = self.meter

    def measure(self, cell: Cell, seconds: float) -> dict[str, object]:
        """One phase of a cell, once all callers have had a first answer; its adapters are new."""
        self.bench.drive(lambda: not self.bench.engine.loader.is_busy)
        self.bench.engine.loader.shelf = AdapterShelf(RAM_BYTES)
        self.connection.adapters = self._name_adapters(cell)
        self.connection.popularity = cell.popularity
        self.bench.start(Load(STREAMS, cell.num_adapters), 0)
        self.meter.loads_ms = {"disk": [], "ram": []}
        before, began_s, began_cpu_s = self._tiers(), time.perf_counter(), time.process_time()
        result = self.bench.measure(StopRule(seconds))
        after, cpu_s = self._tiers(), time.process_time() - began_cpu_s
        self.bench.stop([])
        return {
            "output_tokens_per_s": result.output_tokens_per_s,
            "output_tokens_per_cpu_s": result.output_tokens_per_s * result.seconds / cpu_s,
            "tpot_ms": shares(result.tpot_ms),
            "ttft_ms": shares([r.ttft_ms for r in result.requests if r.sent_s >= began_s]),
            "load_ms": {tier: shares(ms) for tier, ms in self.meter.loads_ms.items()},
            "tiers": {name: after[name] - before[name] for name in after},
            "shelf_bytes": self.bench.engine.loader.shelf.policy.num_bytes,
        }

    def _code_contents(self) -> None:
        config = decoder_config(read_hf_config(self.model.folder))
        for i, folder in enumerate(self.model.adapters):
            coded = self.root / f"compeft-{i}"
            coded.mkdir()
            adapter = read_adapter(folder, config)
            packed = pack_archive(adapter, Compeft(Compeft.Config()), BaseIdentity(BASE, "0"))
            (coded / ARCHIVE_FILE).write_bytes(packed)
            folder.rename(self.root / f"plain-{i}")

    def _name_adapters(self, cell: Cell) -> tuple[Path, ...]:
        folder = Path(tempfile.mkdtemp(dir=self.root))
        names = tuple(folder / str(i) for i in range(cell.num_adapters))
        for i, name in enumerate(names):
            name.symlink_to(self.root / f"{cell.form}-{i % NUM_CONTENTS}")
        return names

    def _tiers(self) -> Counter[str]:
        """Totals by tier and kind, such as `ram num_hits`."""
        return Counter(
            {
                f"{tier.tier} {kind}": getattr(tier, kind)
                for tier in self.bench.engine.requests.adapter_tiers()
                for kind in ("num_hits", "num_misses", "num_loads", "num_evictions")
            }
        )


def shares(values: list[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile, and how many values are behind them."""
    found: dict[str, float] = {f"p{p}": percentile(values, p / 100) for p in (50, 95, 99)}
    return found | {"count": len(values)}


def run(seconds: float) -> dict[str, object]:
    """All cells; the references are measured before and after each."""
    with tempfile.TemporaryDirectory() as scratch:
        crowd = Crowd(Path(scratch))
        around = [measure_references(crowd, seconds)]
        phases: dict[str, dict[str, object]] = {}
        for cell in CELLS:
            figures = crowd.measure(cell, seconds)
            around.append(measure_references(crowd, seconds))
            phases[cell.name] = figures | ratios(figures, around[-2:])
            print(cell.name, json.dumps(phases[cell.name]), flush=True)
    return {"references": around, "cells": phases}


def measure_references(crowd: Crowd, seconds: float) -> dict[str, dict[str, float]]:
    """Rates of the bare base and of one adapter."""
    measured = {cell.name: crowd.measure(cell, seconds) for cell in REFERENCES}
    return {
        name: {rate: float(str(figures[rate])) for rate in RATES}
        for name, figures in measured.items()
    }


def ratios(
    figures: dict[str, object], around: list[dict[str, dict[str, float]]]
) -> dict[str, float]:
    """A cell's rates over the mean of the same reference before and after it."""
    return {
        f"{rate} over {cell.name}": float(str(figures[rate]))
        / statistics.fmean(references[cell.name][rate] for references in around)
        for cell in REFERENCES
        for rate in RATES
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each phase")
    options = parser.parse_args()
    results = ResultFile(options.out, "adapters")
    results.add(run(options.seconds))
    print(results.path)


if __name__ == "__main__":
    main()
