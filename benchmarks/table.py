"""The results as a few lines for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Figures = Mapping[str, Any]


def table(results: Figures) -> str:
    """Everything that was measured, most important first."""
    sections = {
        "both": _cells,
        "tandem": _rates,
        "peers": _rates,
        "ratios": _ratios,
        "first_token": _first_token,
        "law": _law,
        "activation_bytes": _memory,
        "growth": _growth,
    }
    lines: list[str] = []
    for name, render in sections.items():
        if results.get(name):
            lines += ["", name.replace("_", " "), *render(results[name])]
    return "\n".join(lines)


def number(value: float | None, digits: int = 0) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def _cells(cells: Figures) -> Iterator[str]:
    yield (
        f"  {'':16} {'eta':>5} {'low-high':>11} {'bound':>6} {'met':>6} {'tpot':>6} {'ttft':>6}"
        f" {'of':>4} {'out/s':>6} {'train/s':>7} {'TPOT p50/p99/target':>22} {'TTFT p50/p99':>13}"
        f" {'vs beside':>9}"
    )
    for name, cell in cells.items():
        eta, met, tpot, ttft = (cell[k] for k in ("eta", "attainment", "tpot_ms", "ttft_ms"))
        target = number(cell["target_tpot_ms"]["median"], 1)
        times = f"{number(tpot['p50'], 1)} / {number(tpot['p99'], 1)} / {target}"
        beside = cell.get("product_over_beside", {}).get("median")
        yield (
            f"  {name:16} {number(eta['median'], 2):>5}"
            f" {number(eta['low'], 2) + '-' + number(eta['high'], 2):>11}"
            f" {number(cell['gemm_bound']['median'], 2):>6}"
            f" {_percent(met['both']):>6} {_percent(met['tpot']):>6} {_percent(met['ttft']):>6}"
            f" {met['requests']:>4}"
            f" {number(cell['output_tokens_per_s']['median']):>6}"
            f" {number(cell['train_tokens_per_s']['median']):>7} {times:>22}"
            f" {number(ttft['p50']) + ' / ' + number(ttft['p99']):>13}"
            f" {'-' if beside is None else f'{beside:.1f}x':>9}"
        )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _rates(phases: Figures) -> Iterator[str]:
    for name, phase in phases.items():
        rates = [
            f"{number(phase[key]['median'], 1)} {label}/s"
            f" ({number(phase[key]['low'], 1)} to {number(phase[key]['high'], 1)})"
            for key, label in (("output_tokens_per_s", "out"), ("train_tokens_per_s", "train"))
            if phase.get(key, {}).get("median")
        ]
        times = [
            f"{label} {number(phase[key]['p50'], 1)} / {number(phase[key]['p99'], 1)} ms"
            for key, label in (("tpot_ms", "TPOT"), ("ttft_ms", "TTFT"))
            if phase.get(key, {}).get("count")
        ]
        yield f"  {name:40} {', '.join([*rates, *times])}"


def _ratios(ratios: Figures) -> Iterator[str]:
    for name, ratio in ratios.items():
        yield (
            f"  {name:48} {number(ratio['median'], 2)}x"
            f" ({number(ratio['low'], 2)} to {number(ratio['high'], 2)})"
        )


def _first_token(figures: Figures) -> Iterator[str]:
    for key in ("alone_ms", "into_training_ms", "added_by_request_ms"):
        times = figures[key]
        yield f"  {key:24} p50 {number(times['p50'], 1)}  p99 {number(times['p99'], 1)}"
    yield (
        f"  added to p50 {number(figures['added_p50_ms'], 1)} ms,"
        f" to p99 {number(figures['added_p99_ms'], 1)} ms"
    )


def _law(kinds: Figures) -> Iterator[str]:
    for name, law in kinds.items():
        yield (
            f"  {name:24} error {_percent(law['error_p50'])} of {law['steps']} steps; same shapes:"
            f" error {_percent(law['repeated_error_p50'])}, noise {_percent(law['noise_p50'])},"
            f" {number(law['error_over_noise'], 1)}x ({law['repeated_steps']} steps)"
        )


def _memory(systems: Figures) -> Iterator[str]:
    for system, levels in systems.items():
        for level, figures in levels.items():
            kept, peak = number(figures["kept"]), number(figures["peak"])
            yield f"  {system + ', ' + level:40} kept {kept:>8}  peak {peak:>8} bytes per token"


def _growth(loads: Figures) -> Iterator[str]:
    for name, load in loads.items():
        overhead = load["overhead_ms"]
        yield (
            f"  {name:26} {number(load['output_tokens_per_s'], 1):>7} out/s, engine"
            f" {number(overhead['p50'], 2)} ms a step (p99 {number(overhead['p99'], 2)}),"
            f" kernels {number(load['kernels_ms'], 1)} ms"
        )
