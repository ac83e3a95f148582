"""What peers' rounds come to, and how ours stand against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peer import PEFT, PEFT_SERVING, VLLM, VLLM_LORA
from benchmarks.phase import PhaseResult
from benchmarks.spread import percentiles, share, spread

RATES = ("output_tokens_per_s", "train_tokens_per_s")
TIMES = ("ttft_ms", "tpot_ms")


def peer_figures(rounds: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Rates as medians of the rounds, latencies over all their requests."""
    figures: dict[str, object] = {
        key: spread([r[key] for r in rounds]) for key in RATES if key in rounds[0]
    }
    for key in TIMES:
        if key in rounds[0]:
            figures[key] = percentiles([v for r in rounds for v in r[key]])
    if "tpot_ms" in figures:
        figures["tpot_samples_ms"] = [v for r in rounds for v in r["tpot_ms"]]
    return figures


def ratios(
    phases: Mapping[str, Sequence[PhaseResult]], peers: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, object]:
    """Our rate over a peer's, round by round."""
    pairs = [
        ("inference, no adapter", VLLM, RATES[0]),
        ("inference, 4 adapters", VLLM, RATES[0]),
        ("inference, 4 adapters", VLLM_LORA, RATES[0]),
        ("inference, 4 adapters", PEFT_SERVING, RATES[0]),
        ("training, 1 job", PEFT, RATES[1]),
        ("training, 3 jobs", PEFT, RATES[1]),
    ]
    return {
        f"{ours} / {theirs}": spread(
            [
                share(getattr(mine, rate), other[rate])
                for mine, other in zip(phases[ours], peers[theirs], strict=True)
            ]
        )
        for ours, theirs, rate in pairs
        if peers.get(theirs)
    }


def rate_product(result: PhaseResult) -> float:
    """Output tokens/s times training tokens/s: what serving beside training is worth."""
    return result.output_tokens_per_s * result.train_tokens_per_s


def product_ratio(
    ours: Sequence[PhaseResult], beside: Sequence[Mapping[str, Any]]
) -> Mapping[str, object]:
    """Our product of both rates over that of two programs beside each other, round by round."""
    theirs = [r[RATES[0]] * r[RATES[1]] for r in beside]
    return spread(
        [share(rate_product(mine), other) for mine, other in zip(ours, theirs, strict=True)]
    )
