"""A thousand adapters behind a few slots: what changing places costs.

    python -m benchmarks.adapters --out DIR

64 closed-loop streams on the 80M model; adapters of rank 8 on all linears, 64 of which fit into the
slots. The rate with 1 to 1,000 of them, drawn uniformly or by Zipf's law, plain or coded by
ComPEFT, against the bare base and one adapter, each the median of its first and last phase. The
thousand have names and digests of their own and share the contents of a few: for the engine they
are as many adapters, for the disk not as many bytes, so what is read comes from the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.bench_model import BASE, BenchModel, make_bench_model
from benchmarks.closed_loop import Bench
from benchmarks.load import Load, StopRule
from benchmarks.machine import environment
from benchmarks.scripted_connection import ScriptedConnection
from benchmarks.spread import percentiles
from benchmarks.step_record import RecordingMeter
from scheduler.domain.adapter import ARCHIVE_FILE
from scheduler.domain.adapter_tier import AdapterTier
from workers.adapter_archive import pack_archive
from workers.adapter_file import BaseIdentity, read_adapter
from workers.adapter_loader import Load as AdapterLoad
from workers.codecs.compeft import Compeft
from workers.hf_config import read_hf_config
from workers.model import decoder_config

NUM_ADAPTERS, NUM_CONTENTS = 1000, 8
STREAMS, RANK, SLOTS = 64, 8, 32  # a slot is counted at rank 16: twice as many of rank 8 fit
RAM_BYTES = 512 << 20

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
    """Callers that draw the adapter of every request."""

    def __init__(self, adapters: tuple[Path, ...]) -> None:
        super().__init__(adapters)
        self.popularity: Popularity = "uniform"
        self._random = np.random.default_rng(5)

    def place(self, index: int, load: Load) -> int:  # noqa: ARG002
        """See ScriptedConnection."""
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


def make_crowd(root: Path) -> tuple[BenchModel, dict[Form, tuple[Path, ...]]]:
    """The model, and a thousand adapters in each form."""
    model = make_bench_model(root, NUM_CONTENTS, RANK)
    config = decoder_config(read_hf_config(model.folder))
    for i, folder in enumerate(model.adapters):
        coded = root / f"coded-{i}"
        coded.mkdir()
        adapter = read_adapter(folder, config)
        packed = pack_archive(adapter, Compeft(Compeft.Config()), BaseIdentity(BASE, "0"))
        (coded / ARCHIVE_FILE).write_bytes(packed)
    return model, {"plain": _named(root, "adapter"), "compeft": _named(root, "coded")}


def _named(root: Path, kind: str) -> tuple[Path, ...]:
    """A thousand names for the contents of a kind."""
    names = tuple(root / f"{kind}-name-{i}" for i in range(NUM_ADAPTERS))
    for i, name in enumerate(names):
        name.symlink_to(root / f"{kind}-{i % NUM_CONTENTS}")
    return names


def measure(
    model: BenchModel, adapters: dict[Form, tuple[Path, ...]], cell: Cell, seconds: float
) -> dict[str, object]:
    """One phase in an engine of its own, so that nothing is resident as it begins."""
    connection = CrowdedConnection(adapters[cell.form])
    connection.popularity = cell.popularity
    bench = Bench(
        replace(model, adapters=adapters[cell.form]),
        connection,
        adapter_slots=SLOTS,
        adapter_ram_bytes=RAM_BYTES,
        max_num_sequences=STREAMS,
        num_threads=torch.get_num_threads(),
    )
    bench.meter = meter = LoadMeter()
    bench.engine.meter = bench.engine.requests.meter = meter
    bench.start(Load(STREAMS, cell.num_adapters), 0)
    result = bench.measure(StopRule(seconds))
    loads = {tier: percentiles(ms) for tier, ms in meter.loads_ms.items() if ms}
    return {
        "output_tokens_per_s": result.output_tokens_per_s,
        "tpot_ms": percentiles(result.tpot_ms),
        "ttft_ms": percentiles(result.ttft_ms),
        "requests": len(result.requests),
        "load_ms": loads,
        "num_loads": {tier: len(ms) for tier, ms in meter.loads_ms.items()},
        "tiers": [_told(tier) for tier in bench.engine.requests.adapter_tiers()],
        "shelf_bytes": bench.engine.loader.shelf.policy.num_bytes,
    }


def _told(tier: AdapterTier) -> dict[str, object]:
    return tier.model_dump(mode="json", exclude={"digests"})


def run(seconds: float) -> dict[str, object]:
    """All cells; the references come first and once more at the end."""
    with tempfile.TemporaryDirectory() as scratch:
        model, adapters = make_crowd(Path(scratch))
        phases: dict[str, list[dict[str, object]]] = {}
        for cell in (*REFERENCES, *CELLS, *REFERENCES):
            phases.setdefault(cell.name, []).append(measure(model, adapters, cell, seconds))
            print(cell.name, json.dumps(phases[cell.name][-1]), flush=True)
    rates = {
        name: [float(str(p["output_tokens_per_s"])) for p in ps] for name, ps in phases.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    base, one = (medians[cell.name] for cell in REFERENCES)
    relative = {
        name: {"tokens_per_s": rate, "to_base": rate / base, "to_one": rate / one}
        for name, rate in medians.items()
    }
    return {"environment": environment(""), "relative": relative, "phases": phases}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--seconds", type=float, default=9.0, help="of each phase")
    options = parser.parse_args()
    result = run(options.seconds)
    place = f"{time.strftime('%Y-%m-%d')}-x86_64"
    path = options.out / f"adapters-{place}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["relative"], indent=1))
    print(path)


if __name__ == "__main__":
    main()
