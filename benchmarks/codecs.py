"""What compression costs adapters that were really trained: quality beside size.

    python -m benchmarks.codecs --out DIR

Trains one adapter for each of four tasks in the engine, on the shipped model. Codes each with every
codec; ComPEFT at five densities: with its own scale, with alpha 1, and with the scale that
validation chooses, with a threshold and a scale for each tensor, or for all A and all B factors.
Then measures loss and exact match on prompts that neither training nor validation has seen.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.codec_judge import Judge
from benchmarks.codec_speed import large_adapter_speed
from benchmarks.codec_tasks import Turn, turns
from benchmarks.codec_training import MODEL, SPEC, TEST, TRAIN, VALID, train
from benchmarks.result_file import RESULTS, ResultFile
from scheduler.domain.adapter import AdapterManifest
from workers.adapter_archive import Archive, pack_archive, read_archive
from workers.adapter_file import BaseIdentity, LoadedAdapter, read_adapter
from workers.architecture import decoder_config
from workers.codec import Codec
from workers.codec_search import Ladder, search
from workers.codecs import CODECS
from workers.codecs.compeft import Compeft
from workers.hf_config import read_hf_config
from workers.model import DecoderConfig
from workers.peft_method import Params
from workers.rice import entropy_bits

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
ALPHAS = (None, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
GUARDS = (0.02, 0.1)  # nats of validation loss that the search may give up


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
    if isinstance(archive.codec, Compeft):
        ternary = archive.codec.unpack(archive.payload, archive.method.file_shapes())
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


def show(rows: dict[str, dict[str, float]]) -> None:
    """Print the averages as a table."""
    print("| codec | ratio | bits | over bound | test loss | exact match | decode ms |")
    for name, row in rows.items():
        keys = ("ratio_to_16_bit", "bits_per_parameter", "payload_over_entropy_bound", "test_loss",
                "exact_match", "read_and_decode_ms")  # fmt: skip
        print(f"| {name} |", " | ".join(f"{row[k]:.3f}" if k in row else "" for k in keys), "|")


def measure_all() -> dict[str, Any]:
    """Every codec on every task's adapter, and how long training them took."""
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
    return {"training_s": training_s, "mean": averages(tasks), "tasks": tasks}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = ResultFile(options.out, "codecs")
    splits = {"train": TRAIN, "valid": VALID, "test": TEST}
    results.add({"spec": SPEC, "splits": splits, "guards_nats": GUARDS})
    results.add(measured := measure_all())
    results.add({"rank 16 on q, k, v, o of 32 layers of 4096": large_adapter_speed()})
    show(measured["mean"])
    print(results.path)


if __name__ == "__main__":
    main()
