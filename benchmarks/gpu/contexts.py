"""SnapKV and EMS beside the whole cache at long contexts: step time, and the K/V that it reads.

K/V are random, and lie as a policy with this budget leaves them. Beside batch 1 stands the batch at
which K/V of the whole cache are DOMINATES times the weights, so that most of a step is theirs; it
is a power of two, since captured steps are. What compressing a prompt costs is measured through the
engine: until the second token of a prompt that is, and of one that is not compressed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil

import torch

from benchmarks.gpu.card_engine import CardEngine, card_engine
from benchmarks.gpu.card_memory import release
from benchmarks.gpu.ceilings import Ceilings
from benchmarks.gpu.random_model import random_decoder, token_bytes, weight_bytes
from benchmarks.gpu.sequences import PAGE, DecodeSteps, sequence_of
from benchmarks.gpu.setting import Figures, Setting
from scheduler.domain.request import KvPolicyChoice, Sequence
from workers.decoder import Decoder
from workers.head_pages import HeadPages
from workers.kv_cache import KVCache
from workers.model import DecoderConfig
from workers.model_runner import ModelRunner

POLICIES = ("whole", "snapkv", "ems")
CONTEXTS = (16_384, 65_536)
TINY_CONTEXTS = (64, 128)
BUDGET, TINY_BUDGET = 1024, 40
WINDOW, TINY_WINDOW = 32, 8
DOMINATES = 2.0


def measure(setting: Setting) -> Iterator[Figures]:
    """Steps of every shape, context, batch and policy; then a prompt's compression."""
    ceilings = Ceilings.of(setting)
    contexts = TINY_CONTEXTS if setting.is_tiny else CONTEXTS
    for shape in setting.models:
        steps = ContextSteps(random_decoder(shape, setting, 0), setting, contexts)
        lines: Figures = {}
        for context in contexts:
            for batch in (1, dominated_batch(steps.config, setting, context)):
                for policy in POLICIES:
                    case = f"{context} x {batch}, {policy}"
                    lines[case] = steps.figures(policy, context, batch, ceilings)
                    yield {shape: lines}
        del steps
        release(setting)
    yield from compression(setting, contexts[0])


def dominated_batch(config: DecoderConfig, setting: Setting, context: int) -> int:
    """The least power of two whose K/V are DOMINATES times the weights."""
    wanted = DOMINATES * weight_bytes(config, setting) / (context * token_bytes(config, setting))
    return 1 << (ceil(wanted) - 1).bit_length()


class ContextSteps:
    """Decode steps over one cache, which the sequences of each case divide anew."""

    def __init__(self, decoder: Decoder, setting: Setting, contexts: tuple[int, ...]) -> None:
        self.config, self.setting = decoder.config, setting
        self.budget = TINY_BUDGET if setting.is_tiny else BUDGET
        blocks = max(dominated_batch(self.config, setting, c) * (c // PAGE + 1) for c in contexts)
        cache = KVCache(self.config, 1 + blocks, PAGE, setting.dtype, setting.device)
        cache.storage.normal_()
        self.runner = ModelRunner(decoder, cache)

    def figures(self, policy: str, context: int, batch: int, ceilings: Ceilings) -> Figures:
        """One case."""
        sequences = [self._sequence(policy, place, context) for place in range(batch)]
        steps = DecodeSteps(self.runner, sequences, [None] * batch)
        step_s = self.setting.time_s(steps.run)
        kv_bytes, weights = batch * self._kv_bytes(policy, context), self._weight_bytes
        flop = 2 * batch * weights / self.setting.dtype.itemsize
        bound_s = ceilings.seconds(weights + kv_bytes, flop)
        return {
            "step_ms": step_s * 1e3,
            "kv_gb": kv_bytes / 1e9,
            "kv_over_weights": kv_bytes / weights,
            "times_roofline": step_s / bound_s,
        }

    @property
    def _weight_bytes(self) -> int:
        return weight_bytes(self.config, self.setting)

    def _kv_bytes(self, policy: str, context: int) -> int:
        """What a step reads of one sequence; merged slots have a float32 count each."""
        own = token_bytes(self.config, self.setting)
        counts = 4 * self.config.num_layers * self.config.num_kv_heads
        read = {
            "whole": context * own,
            "snapkv": self.budget * own,
            "ems": self.budget * (own + counts),
        }
        return read[policy]

    def _sequence(self, policy: str, place: int, context: int) -> Sequence:
        layout = None if policy == "whole" else self._pages(policy, context)
        count = context // PAGE + 1 if layout is None else layout.blocks_for(context)
        first = 1 + place * count
        blocks = list(range(first, first + count))
        sequence = sequence_of(place, context, blocks, num_computed=context - 1)
        sequence.layout = layout
        return sequence

    def _pages(self, policy: str, context: int) -> HeadPages:
        """Every head keeps the budget, as both policies have it."""
        heads = self.config.num_layers, self.config.num_kv_heads
        counts = torch.rand(*heads, self.budget) if policy == "ems" else None
        return HeadPages(torch.full(heads, self.budget), context - 1, PAGE, counts)


def compression(setting: Setting, tokens: int) -> Iterator[Figures]:
    """Milliseconds until the second token of a prompt, by policy."""
    bench = card_engine(setting, 1000.0)
    waits: Figures = {}
    for policy in POLICIES:
        choice = None if policy == "whole" else policy_choice(policy, setting)
        waits[policy] = [second_token_ms(bench, tokens, choice) for _ in range(2)][-1]
        yield {f"second token of {tokens}, ms": waits}


def policy_choice(policy: str, setting: Setting) -> KvPolicyChoice:
    """A policy with the benchmark's budget."""
    budget, window = (TINY_BUDGET, TINY_WINDOW) if setting.is_tiny else (BUDGET, WINDOW)
    return KvPolicyChoice(type=policy, options={"budget": budget, "window": window})


def second_token_ms(bench: CardEngine, tokens: int, choice: KvPolicyChoice | None) -> float:
    """From asking to the second token: the prompt, its compression, and a step."""
    times = bench.connection.ask(output_tokens=4, prompt_tokens=tokens, kv_policy=choice)
    bench.drive(lambda: len(times.token_s) > 1)
    took_s = times.token_s[1] - times.sent_s
    bench.stop()
    return took_s * 1e3
