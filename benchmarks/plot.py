"""The results as one picture: rates beside peers, eta beside its bound, spreads of TPOT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Figures = Mapping[str, Any]
OURS, THEIRS, BOUND = "tab:blue", "tab:gray", "tab:orange"


def plot(results: Figures, path: Path) -> None:
    """Draw and write a PNG."""
    figure, axes = plt.subplots(2, 2, figsize=(15, 10), layout="constrained")
    _rates(axes[0, 0], results, "output_tokens_per_s", "output tokens/s, 8 streams")
    _rates(axes[0, 1], results, "train_tokens_per_s", "training tokens/s")
    _etas(axes[1, 0], results["both"])
    _tpots(axes[1, 1], results)
    machine = results["environment"]
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads, {machine['date']}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _rates(axes: Axes, results: Figures, key: str, title: str) -> None:
    """A bar for each system that has the rate, whiskers from the lowest round to the highest."""
    colors = {"tandem": OURS, "both": BOUND, "peers": THEIRS}
    bars = [
        (f"both, {name}" if group == "both" else name, figures[key], color)
        for group, color in colors.items()
        for name, figures in results.get(group, {}).items()
        if figures.get(key, {}).get("median") and (group != "both" or name.startswith("8 "))
    ]
    names, spreads, shades = zip(*bars, strict=True)
    middles = [s["median"] for s in spreads]
    whiskers = [
        [s["median"] - s["low"] for s in spreads],
        [s["high"] - s["median"] for s in spreads],
    ]
    axes.barh(names, middles, xerr=whiskers, color=shades, capsize=3)
    axes.invert_yaxis()
    axes.set_title(title)


def _etas(axes: Axes, cells: Figures) -> None:
    """Eta of each cell with its rounds, and the bound of GEMMs alone."""
    for place, cell in enumerate(cells.values()):
        rounds, bound = cell["eta"]["rounds"], cell["gemm_bound"]["median"]
        bar = axes.bar(place, cell["eta"]["median"], color=OURS)
        (dots,) = axes.plot([place] * len(rounds), rounds, "k.")
        line = axes.hlines(bound, place - 0.45, place + 0.45, color=BOUND, linewidth=3)
    bar.set_label("eta")
    dots.set_label("rounds")
    line.set_label("bound of GEMMs alone")
    axes.axhline(1.0, color="k", linestyle=":", label="time slicing")
    axes.set_xticks(
        range(len(cells)),
        [name.replace(" stream", "\nstream").replace(", ", "\n") for name in cells],
    )
    axes.set_title("co-serving efficiency")
    axes.legend()


def _tpots(axes: Axes, results: Figures) -> None:
    """Share of requests whose mean TPOT is at most so long."""
    for group, style in (("both", "-"), ("peers", "--")):
        for name, figures in results.get(group, {}).items():
            times = sorted(figures.get("tpot_samples_ms", []))
            if times:
                shares = [(i + 1) / len(times) for i in range(len(times))]
                axes.step(times, shares, style, where="post", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("mean time per output token of a request, ms")
    axes.set_title("share of requests at most so long")
    axes.legend(fontsize="small")
