"""Marks of several models as tables with intervals, and as a picture.

python -m benchmarks.kv_report --marks MARKS --out DIR
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bootstrap import Figures, Resamples, mean
from benchmarks.kv_examiner import NUM_QUERIES, WHOLE, WINDOW
from benchmarks.kv_plot import plot
from benchmarks.kv_recall import OPTIONS_FILE
from benchmarks.machine import environment
from benchmarks.result_file import result_path
from benchmarks.spread import rounded

MEASURES = ("exact", "divergence", "tokens", "values", "words")
SHEET = ("task", "context", "ask")  # what is asked
CELL = ("policy", "budget")  # and under what
BASELINES = {
    "ems": ("random", "snapkv", "ems, no counts", "ems, evict only"),
    "snapkv": ("random",),
    "adakv": ("snapkv",),
    "keydiff": ("random", "snapkv"),
}

Line = dict[str, Any]


def report(lines: list[Line]) -> list[Line]:
    """One line for every task, context, ask, policy and budget, over all models."""
    sheets: dict[tuple[Any, ...], dict[tuple[Any, ...], list[Line]]] = {}
    for line in sorted(lines, key=lambda line: int(line["seed"])):
        sheet = sheets.setdefault(tuple(line[name] for name in SHEET), {})
        sheet.setdefault(tuple(line[name] for name in CELL), []).append(line)
    return [
        dict(zip(SHEET, asked, strict=True)) | cell
        for asked, cells in sheets.items()
        for cell in _cells(cells)
    ]


def _cells(cells: dict[tuple[Any, ...], list[Line]]) -> Iterator[Line]:
    """The cells of one sheet: every policy and budget, resampled alike."""
    whole = cells[WHOLE, 1.0]
    measures = [name for name in MEASURES if name in whole[0]]
    resamples = Resamples([len(model[measures[0]]) for model in whole])
    for (policy, budget), models in cells.items():
        held = [model["held"] for model in models if model["held"]]
        cell: Line = {
            "policy": policy,
            "budget": budget,
            "held": mean(held) if held else None,
        }
        for measure in measures:
            cell[measure] = resamples.interval(_figures(models, measure))
        first = _figures(models, measures[0])
        cell[f"{measures[0]} by model"] = [mean([texts]) for texts in first]
        for other in ((WHOLE, 1.0), *((name, budget) for name in BASELINES.get(policy, ()))):
            if other in cells:
                over = resamples.difference(first, _figures(cells[other], measures[0]))
                cell[f"{measures[0]} over {other[0]}"] = over
        yield cell


def _figures(models: list[Line], measure: str) -> Figures:
    return [model[measure] for model in models]


def render(cells: list[Line], measure: str) -> Iterator[str]:
    """Tables in Markdown: a row for each policy, a column for each budget."""
    for asked in dict.fromkeys(tuple(cell[name] for name in SHEET) for cell in cells):
        sheet = [cell for cell in cells if tuple(cell[name] for name in SHEET) == asked]
        if measure not in sheet[0]:
            continue
        budgets = sorted({cell["budget"] for cell in sheet}, reverse=True)
        yield f"\n{asked} {measure}\n| policy | " + " | ".join(f"{b:.1%}" for b in budgets) + " |"
        yield "|---" * (len(budgets) + 1) + "|"
        for policy in dict.fromkeys(cell["policy"] for cell in sheet):
            own = {cell["budget"]: cell[measure] for cell in sheet if cell["policy"] == policy}
            told = [f"{own[b].mean:.2f}" if b in own else "" for b in budgets]
            yield f"| {policy} | " + " | ".join(told) + " |"


def dump(results: Line, cells: list[Line]) -> str:
    """JSON with a line for each cell."""
    head = json.dumps(results, indent=1).removesuffix("\n}")
    lines = ",\n  ".join(json.dumps(rounded(cell, 3), separators=(",", ":")) for cell in cells)
    return f'{head},\n "cells": [\n  {lines}\n ]\n}}\n'


def main() -> None:
    """Read all marks; write and print what they say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--marks", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lines: list[Line] = []
    for file in sorted(arguments.marks.glob("marks-*.json")):
        lines += json.loads(file.read_text())
    machine, cells = environment(""), report(lines)
    results = {
        "environment": machine,
        "window": WINDOW,
        "num_queries": NUM_QUERIES,
        "options": json.loads((arguments.marks / OPTIONS_FILE).read_text()),
    }
    path = result_path(arguments.out, "kv-recall")
    path.write_text(dump(results, cells))
    plot(cells, f"{machine['cpu']}, {machine['date']}", path.with_suffix(".png"))
    for measure in MEASURES:
        print("\n".join(render(cells, measure)))


if __name__ == "__main__":
    main()
