"""What is still found, against the share of K/V that is kept: one picture of all contexts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.kv_examiner import WHOLE

ASKS = ("aware", "agnostic", "second")
TASK = "multikey"
STYLES = {
    "ems": ("tab:red", "-"),
    "snapkv": ("tab:blue", "-"),
    "adakv": ("tab:cyan", "-"),
    "keydiff": ("tab:green", "-"),
    "h2o": ("tab:purple", "--"),
    "streaming": ("tab:gray", "--"),
    "random": ("k", "--"),
}


def plot(cells: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw and write a PNG: a row for each context, a column for each way to ask."""
    cells = [cell for cell in cells if cell["task"] == TASK]
    contexts = sorted({cell["context"] for cell in cells})
    size = 4.6 * len(ASKS), 3.6 * len(contexts)
    figure, axes = plt.subplots(
        len(contexts), len(ASKS), figsize=size, layout="constrained", squeeze=False
    )
    for row, context in zip(axes, contexts, strict=True):
        for place, ask in zip(row, ASKS, strict=True):
            asked = [cell for cell in cells if (cell["context"], cell["ask"]) == (context, ask)]
            _curves(place, asked)
            place.set_title(f"{context:,} tokens, {ask}")
    axes[0, 0].legend(fontsize="small")
    figure.suptitle(f"One of eight facts, right to the last token. {title}")
    figure.savefig(path, dpi=70)
    plt.close(figure)


def _curves(axes: Axes, cells: Sequence[dict[str, Any]]) -> None:
    """A line for each policy with its 95 % interval, and the whole cache's level."""
    for policy, (color, line) in STYLES.items():
        own = sorted((c for c in cells if c["policy"] == policy), key=lambda c: -c["budget"])
        budgets = [100 * cell["budget"] for cell in own]
        exact = [cell["exact"] for cell in own]
        axes.plot(budgets, [e.mean for e in exact], line, color=color, label=policy, marker=".")
        lows, highs = [e.low for e in exact], [e.high for e in exact]
        axes.fill_between(budgets, lows, highs, color=color, alpha=0.12)
    whole = next(cell for cell in cells if cell["policy"] == WHOLE)
    axes.axhline(whole["exact"].mean, color="k", linestyle=":", label=WHOLE)
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.minorticks_off()
    ticks = sorted({100 * cell["budget"] for cell in cells})
    axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("K/V bytes kept, % of the whole")
