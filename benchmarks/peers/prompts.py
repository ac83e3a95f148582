"""The prompts of every system under measurement: random, distinct, and equal for all of them."""

from __future__ import annotations

import numpy as np

VOCAB = 8192
PROMPT_TOKENS = (200, 300)  # 250 on average
OUTPUT_TOKENS = (48, 80)  # 64 on average: callers of one length would march in step


def prompt(index: int, num_tokens: int) -> tuple[int, ...]:
    """The tokens of request `index`; no two requests share a prefix."""
    rng = np.random.default_rng(10_000 + index)
    return tuple(int(t) for t in rng.integers(2, VOCAB, num_tokens))


def lengths(index: int) -> tuple[int, int]:
    """Prompt and output tokens of request `index`."""
    rng = np.random.default_rng(20_000 + index)
    low, high = PROMPT_TOKENS
    num_prompt = int(rng.integers(low, high, endpoint=True))
    low, high = OUTPUT_TOKENS
    return num_prompt, int(rng.integers(low, high, endpoint=True))


def first_output_tokens(stream: int, num_streams: int) -> int:
    """Output tokens of a stream's very first request: spread, so that streams begin apart."""
    return max(2, OUTPUT_TOKENS[1] * (stream + 1) // num_streams)
