"""What models trained for it still find and predict when their K/V are compressed, by budget.

    python -m benchmarks.recall_model --out MODELS
    python -m benchmarks.kv_recall tune --models MODELS --out MARKS
    python -m benchmarks.kv_recall ask --models MODELS --out MARKS [--seeds 1 2 3] [--parts ...]
    python -m benchmarks.kv_report --marks MARKS --out DIR

`tune` chooses every policy's options on the model of seed 0, which is not reported. `ask` writes a
file of marks for each model and part; those that are there are left alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.kv_contenders import CONTENDERS
from benchmarks.kv_examiner import Examiner, Marks, Way
from benchmarks.kv_prediction import Nats, examine_passages
from benchmarks.kv_reader import Reader
from benchmarks.recall_model import model_folder
from benchmarks.recall_task import TASKS

Options = Mapping[str, Mapping[str, Any]]

TUNING_SEED = 0
DATA_SEED = 123
OPTIONS_FILE = "options.json"
BUDGETS = (0.5, 0.25, 0.125, 0.0625, 0.03, 0.02)
LONG = ("random", "streaming", "h2o", "snapkv", "keydiff", "ems", "ems, no counts")


@dataclass(frozen=True, slots=True)
class Part:
    """Texts of one length, and the course whose models are asked about them."""

    course: str
    context: int
    prompts: Mapping[str, int]
    budgets: tuple[float, ...] = BUDGETS
    contenders: tuple[str, ...] = tuple(CONTENDERS)


TUNING = Part("recall", 1024, {"multikey": 12, "needle": 12}, budgets=(0.125, 0.0625))
PROMPTS = {"multikey": 30, "needle": 15, "lookup": 10, "majority": 15}
PARTS = {
    "1024": Part("recall", 1024, PROMPTS),
    "256": Part("recall", 256, PROMPTS, BUDGETS[:-1]),  # 2 % would be five slots, less than WINDOW
    "8192": Part(
        "longest", 8192, {"multikey": 8, "needle": 12}, (0.125, 0.0625, 0.03, 0.02, 0.01), LONG
    ),
    "grammar": Part("grammar", 1024, {"grammar": 20}),
}
MOST_TOKENS = 262_144


def ways(options: Options, names: tuple[str, ...]) -> dict[str, Way]:
    """Contenders with the options that were chosen for them."""
    return {name: Way(CONTENDERS[name], options[CONTENDERS[name].like or name]) for name in names}


def tune(models: Path) -> dict[str, dict[str, Any]]:
    """Each contender's best options, by the mean of all answers' marks; the first of equals."""
    tried = {
        f"{name} {number}": Way(contender, options)
        for name, contender in CONTENDERS.items()
        if not contender.like
        for number, options in enumerate(contender.grid())
    }
    torch.manual_seed(TUNING_SEED)
    reader = Reader(model_folder(models, "recall", TUNING_SEED), MOST_TOKENS)
    marks = ask(Examiner(reader, tried, TUNING.budgets), TUNING, TUNING_SEED)
    means: dict[str, list[float]] = {}
    for line in marks:
        means.setdefault(line["policy"], []).append(fmean(line["exact"]))
    chosen: dict[str, dict[str, Any]] = {}
    for name, contender in CONTENDERS.items():
        if not contender.like:
            scores = [fmean(means[f"{name} {n}"]) for n in range(len(contender.grid()))]
            chosen[name] = contender.grid()[scores.index(max(scores))]
            print(name, chosen[name], [round(score, 3) for score in scores], flush=True)
    return chosen


def ask(examiner: Examiner, part: Part, seed: int) -> list[dict[str, Any]]:
    """Marks on every task of a part; all policies are asked about the same texts."""
    lines: list[dict[str, Any]] = []
    for number, (task, prompts) in enumerate(part.prompts.items()):
        rng = np.random.default_rng((DATA_SEED, seed, part.context, number))
        marks: list[Marks] | list[Nats]
        if task in TASKS:
            marks = examiner.examine(TASKS[task](rng, prompts, part.context))
        else:
            marks = examine_passages(examiner, rng, prompts, part.context)
        lines += [{"seed": seed, "task": task, "context": part.context} | asdict(m) for m in marks]
    return lines


def ask_model(models: Path, out: Path, seed: int, name: str) -> None:
    """Ask one model for one part, and write its marks."""
    part, file = PARTS[name], out / f"marks-{name}-{seed}.json"
    if file.exists():
        return
    options: Options = json.loads((out / OPTIONS_FILE).read_text())
    torch.manual_seed(seed)
    reader = Reader(model_folder(models, part.course, seed), MOST_TOKENS)
    examiner = Examiner(reader, ways(options, part.contenders), part.budgets)
    lines = ask(examiner, part, seed)
    file.write_text(json.dumps(lines) + "\n")
    print(f"{file.name}: {len(lines)} lines", flush=True)


def main() -> None:
    """Tune or ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("tune", "ask"))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.what == "tune":
        chosen = tune(arguments.models)
        (arguments.out / OPTIONS_FILE).write_text(json.dumps(chosen, indent=1) + "\n")
        return
    for part in arguments.parts:
        for seed in arguments.seeds:
            ask_model(arguments.models, arguments.out, seed, part)


if __name__ == "__main__":
    main()
