"""Training alone: tokens a second as a share of the GEMM rate, and the most memory allocated."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.gpu.card_engine import card_engine
from benchmarks.gpu.ceilings import gemm_flop_per_s
from benchmarks.gpu.setting import Figures, Setting, linear_parameters


def measure(setting: Setting) -> Iterator[Figures]:
    """One job of LoRA rank 16 on all linears, examples of 4k tokens.

    Products counted: 4 for each weight and token (forward, and the gradient of the input; frozen
    weights need none), the vocabulary's included; adapters and attention are not.
    """
    rate = gemm_flop_per_s(setting)
    bench = card_engine(setting, 25.0)
    config = bench.host.runner.decoder.config
    bench.start_job()
    bench.measure(setting.seconds)
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    phase = bench.measure(2 * setting.seconds)
    weights = linear_parameters(config) + config.vocab_size * config.hidden_size
    yield {
        "model": setting.largest,
        "tokens_per_s": phase.train_tokens_per_s,
        "share_of_gemm_rate": 4 * weights * phase.train_tokens_per_s / rate,
    }
    if setting.device.type == "cuda":
        yield {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    bench.stop()
