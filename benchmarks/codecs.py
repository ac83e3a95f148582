"""What compression costs adapters that were really trained: quality beside size.

    python -m benchmarks.codecs --out DIR

Trains one adapter for each of four tasks in the engine, on the shipped model. Codes each with every
codec; ComPEFT at five densities: with its own scale, with alpha 1, and with the scale that
validation chooses, with a threshold and a scale for each tensor, or for all A and all B factors.
Then measures loss and exact match on prompts that neither training nor validation has seen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from benchmarks.codec_tasks import ALL, EXAMPLES, Turn, turns
from scheduler.domain.adapter import AdapterManifest
from scheduler.domain.job import FinetuneSpec
from scheduler.domain.messages import CheckpointWritten, FromEngine, JobStopped, StartJob, ToEngine
from scheduler.text import dataset
from scheduler.text.model_files import read_model_files
from scheduler.text.tokenizer import ChatTokenizer
from workers.adapter_archive import Archive, pack_archive, read_archive
from workers.adapter_file import BaseIdentity, LoadedAdapter, read_adapter
from workers.codec import CODECS, Codec, num_entries
from workers.codecs.search import Ladder, search
from workers.engine import EngineLoop
from workers.hf_config import read_hf_config
from workers.lora_factors import sites_of
from workers.model import DecoderConfig, decoder_config
from workers.peft_method import PEFT_METHODS, Params
from workers.rice import entropy_bits
from workers.settings import EngineSettings
from workers.ternary import TernaryParams

from answer import Answerer  # isort: skip  # on the path since benchmarks.codec_tasks
from data import IGNORED, chat, encode  # isort: skip

MODEL = EXAMPLES / "base_model" / "tandem-tiny"
BASE = "tandem-tiny"
TRAIN, VALID, TEST = 240, 60, 100
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
ALPHAS = (None, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
GUARDS = (0.02, 0.1)  # nats of validation loss that the search may give up
SPEC: dict[str, Any] = {
    "base_model": BASE,
    "n_epochs": 12,
    "batch_size": 8,
    "learning_rate": 4e-3,
    "seed": 1,
    "method_config": {"rank": 16, "alpha": 32},
    "checkpoint_every_steps": 10_000,
    "checkpoint_every_s": 1e6,
}
LARGE = (32, 4096)  # layers and width of the adapter that only decoding speed is measured on


@dataclass
class Trainer:
    """The engine's pipe: orders at once, then silence; keeps where the adapters end up."""

    orders: list[ToEngine]
    folders: dict[str, Path] = field(default_factory=dict)

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """See workers.engine.Connection."""
        del timeout_s
        orders, self.orders = self.orders, []
        return orders

    def send(self, message: FromEngine) -> None:
        """Note a finished adapter."""
        if isinstance(message, JobStopped):
            raise RuntimeError(f"{message.job_id} has stopped: {message.error}")
        if isinstance(message, CheckpointWritten) and message.final:
            self.folders[message.job_id] = Path(message.path) / "adapter"


def train(root: Path) -> dict[str, Path]:
    """Adapter folders by task."""
    tokenizer = ChatTokenizer(read_model_files(MODEL))
    orders: list[ToEngine] = []
    for task in ALL:
        rows = [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in turns(task, TRAIN, VALID, TEST)[0]
        ]
        path = root / f"{task}.bin"
        lines = [json.dumps(row).encode() for row in rows]
        dataset.write(path, dataset.encode_file(lines, tokenizer, 512))
        spec = FinetuneSpec.model_validate(SPEC)
        orders.append(
            StartJob(
                job_id=task,
                tenant_id=task,
                epoch=1,
                spec=spec,
                train_path=str(path),
                checkpoint_root=str(root / task),
            )
        )
    pipe = Trainer(orders)
    settings = {"base_models": [f"{BASE}={MODEL}"], "num_threads": torch.get_num_threads()}
    engine = EngineLoop(EngineSettings.model_validate(settings), pipe)
    while len(pipe.folders) < len(ALL):
        engine.turn()
        if not engine.hosts[BASE].has_work:
            time.sleep(0.01)  # the last checkpoints are being written
    return pipe.folders


class Judge:
    """The shipped model in transformers, with an adapter added to its weights for a while."""

    def __init__(self) -> None:
        self.answerer = Answerer.load(MODEL)
        self.weights = {
            f"base_model.model.{name.removesuffix('.weight')}": parameter
            for name, parameter in self.answerer.model.named_parameters()
        }

    @contextmanager
    def wearing(self, adapter: LoadedAdapter) -> Iterator[None]:
        """Add the adapter's updates, and put the old weights back afterwards."""
        sites = sites_of(adapter)
        old = {site: self.weights[site].detach().clone() for site in sites}
        with torch.no_grad():
            for site, factors in sites.items():
                self.weights[site].add_(factors.update())
        yield
        with torch.no_grad():
            for site, weight in old.items():
                self.weights[site].copy_(weight)

    @torch.no_grad()
    def loss(self, asked: list[Turn]) -> float:
        """Mean loss of the answers' tokens, in nats."""
        pairs = [encode(self.answerer.tokenizer, chat([turn])) for turn in asked]
        longest = max(len(inputs) for inputs, _ in pairs)
        inputs = torch.tensor([i + [0] * (longest - len(i)) for i, _ in pairs])
        labels = torch.tensor([t + [IGNORED] * (longest - len(t)) for _, t in pairs])
        logits = self.answerer.model(input_ids=inputs).logits[:, :-1]
        flat = labels[:, 1:].flatten()
        return float(functional.cross_entropy(logits.flatten(0, 1), flat, ignore_index=IGNORED))


@dataclass(frozen=True, slots=True)
class Subject:
    """One trained adapter with its data."""

    adapter: LoadedAdapter
    manifest: AdapterManifest
    valid: list[Turn]
    test: list[Turn]

    @classmethod
    def read(cls, task: str, folder: Path, model: DecoderConfig) -> Subject:
        """Load from a job's folder."""
        manifest = AdapterManifest.model_validate_json((folder / "manifest.json").read_bytes())
        _, valid, test = turns(task, TRAIN, VALID, TEST)
        return cls(read_adapter(folder, model), manifest, valid, test)

    def pack(self, codec: Codec) -> bytes:
        """An archive of the adapter."""
        base = BaseIdentity(self.manifest.base_model, self.manifest.base_digest)
        return pack_archive(self.adapter, codec, base, self.manifest.init_seed)


def codec_of(name: str, **options: object) -> Codec:
    """A codec by name."""
    return CODECS[name](CODECS[name].Config.model_validate(options))


def measure(subject: Subject, codec: Codec, judge: Judge, root: Path) -> dict[str, Any]:
    """Size of an archive, time to read it, and quality of what comes out."""
    path = root / "adapter.tnd"
    path.write_bytes(subject.pack(codec))
    began_s = time.perf_counter()
    archive = read_archive(path, subject.adapter.method.model)
    adapter = archive.adapter()
    decode_ms = (time.perf_counter() - began_s) * 1e3
    with judge.wearing(adapter):
        quality = {
            "test_loss": judge.loss(subject.test),
            "exact_match": judge.answerer.score(subject.test),
        }
    options = {"codec": archive.header.codec, "options": archive.header.codec_config}
    return quality | sizes(archive) | {"read_and_decode_ms": decode_ms} | options


def sizes(archive: Archive) -> dict[str, float]:
    """Exact bytes; for ternary codes, over the entropy bound."""
    size = archive.size
    facts = {
        "file_bytes": float(size.total),
        "payload_bytes": float(size.payload),
        "bits_per_parameter": 8 * size.payload / size.num_parameters,
        "ratio_to_16_bit": size.ratio_to_16_bit,
    }
    if archive.header.codec == "compeft":
        ternary: TernaryParams = archive.codec.unpack(  # type: ignore[attr-defined]
            archive.payload, archive.method.file_shapes()
        )
        bound = sum(
            32 + entropy_bits(g.signs.num_nonzero, g.signs.size) for g in ternary.groups.values()
        )
        facts["payload_over_entropy_bound"] = 8 * size.payload / bound
    return facts


def tuned(subject: Subject, density: float, group_by: str, judge: Judge) -> Codec:
    """ComPEFT with the scale of least validation loss at one density."""
    options = {"densities": (density,), "alphas": ALPHAS, "group_by": group_by, "guard": 1e9}
    return searched(subject, Ladder.model_validate(options), judge)


def searched(subject: Subject, ladder: Ladder, judge: Judge) -> Codec:
    """What the search finds on the validation prompts."""
    score = score_of(subject, judge)
    return search(subject.adapter, score, ladder, subject.manifest.init_seed).codec


def score_of(subject: Subject, judge: Judge) -> Any:
    """Minus the validation loss."""

    def score(params: Params) -> float:
        with judge.wearing(LoadedAdapter(subject.adapter.method, params)):
            return -judge.loss(subject.valid)

    return score


def run_subject(subject: Subject, judge: Judge, root: Path) -> dict[str, Any]:
    """All codecs on one adapter."""
    rows: dict[str, Any] = {
        "base": {
            "test_loss": judge.loss(subject.test),
            "exact_match": judge.answerer.score(subject.test),
        },
        "none": measure(subject, codec_of("none"), judge, root),
        "none, bfloat16": measure(subject, codec_of("none", dtype="bfloat16"), judge, root),
        "int8": measure(subject, codec_of("int8"), judge, root),
        "int4": measure(subject, codec_of("int4"), judge, root),
    }
    for density in DENSITIES:
        codecs = {
            "": codec_of("compeft", density=density),
            ", alpha 1": codec_of("compeft", density=density, alpha=1.0),
            ", tuned": tuned(subject, density, "tensor", judge),
            ", tuned, A and B": tuned(subject, density, "factor", judge),
        }
        for note, codec in codecs.items():
            rows[f"compeft {density:g}{note}"] = measure(subject, codec, judge, root)
    for guard in GUARDS:
        ladder = Ladder(densities=DENSITIES, alphas=ALPHAS, guard=guard)
        rows[f"searched, {guard:g} nats"] = measure(
            subject, searched(subject, ladder, judge), judge, root
        )
    return rows


def averages(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Means over the tasks of every number that all have."""
    result: dict[str, dict[str, float]] = {}
    for row in next(iter(tasks.values())):
        keys = [k for k, v in next(iter(tasks.values()))[row].items() if isinstance(v, float)]
        result[row] = {
            key: statistics.mean(rows[row].get(key, float("nan")) for rows in tasks.values())
            for key in keys
        }
    return result


def fastest_ms(work: Callable[[], object], rounds: int = 7) -> float:
    """Time of the round that was disturbed least."""
    times = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        work()
        times.append((time.perf_counter() - began_s) * 1e3)
    return min(times)


def large_adapter_speed() -> list[dict[str, float]]:
    """Fastest of some rounds on random numbers, shaped as rank 16 on q, k, v, o of a 7B model."""
    layers, width = LARGE
    shapes = {
        f"{layer}.{module}.lora_{factor}.weight": (16, width) if factor == "A" else (width, 16)
        for layer in range(layers)
        for module in "qkvo"
        for factor in "AB"
    }
    torch.manual_seed(0)
    params = {name: torch.randn(shape) for name, shape in shapes.items()}
    rows = []
    for density in (0.05, 0.2):
        codec: Any = codec_of("compeft", density=density)
        payload = codec.encode(params)
        ternary = codec.unpack(payload, shapes)
        rows.append(
            {
                "density": density,
                "num_parameters": num_entries(dict(shapes)),
                "payload_bytes": len(payload),
                "ternary_bytes_in_memory": ternary.num_bytes,
                "encode_ms": fastest_ms(partial(codec.encode, params)),
                "file_to_bitmaps_ms": fastest_ms(partial(codec.unpack, payload, shapes)),
                "bitmaps_to_float32_ms": fastest_ms(partial(codec.expand, ternary, shapes)),
            }
        )
    return rows


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the averages as a table."""
    print("| codec | ratio | bits | over bound | test loss | exact match | decode ms |")
    for name, row in rows.items():
        keys = ("ratio_to_16_bit", "bits_per_parameter", "payload_over_entropy_bound", "test_loss",
                "exact_match", "read_and_decode_ms")  # fmt: skip
        print(f"| {name} |", " | ".join(f"{row[k]:.3f}" if k in row else "" for k in keys), "|")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    assert PEFT_METHODS.names()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        began_s = time.perf_counter()
        folders = train(root)
        training_s = time.perf_counter() - began_s
        print(f"trained {len(folders)} adapters in {training_s:.0f} s", flush=True)
        model, judge = decoder_config(read_hf_config(MODEL)), Judge()
        tasks = {}
        for task, folder in sorted(folders.items()):
            tasks[task] = run_subject(Subject.read(task, folder, model), judge, root)
            print(task, "done", flush=True)
    means = averages(tasks)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch": torch.__version__,
        "spec": SPEC,
        "splits": {"train": TRAIN, "valid": VALID, "test": TEST},
        "guards_nats": GUARDS,
        "training_s": training_s,
        "mean": means,
        "tasks": tasks,
        "rank 16 on q, k, v, o of 32 layers of 4096": large_adapter_speed(),
    }
    path = options.out / f"codecs-{result['date']}-{result['machine']}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    show(means)
    print(json.dumps(result["rank 16 on q, k, v, o of 32 layers of 4096"], indent=1))
    print(path)


if __name__ == "__main__":
    main()
