"""Requests whose K/V are compressed, and what every such test asks of their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from scheduler.domain.request import KvPolicyChoice
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    always,
    ended,
    generate,
    mixed,
    prompt,
)
from tests.unit.workers.tiny_models import save_oracle
from workers.kv_policies import KV_POLICIES

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate
    from workers.model_host import ModelHost

NAMES = KV_POLICIES.names()
LENGTH, WINDOW, NUM_SINKS, BUDGET = 60, 6, 2, 20
NUM_OUTPUT = 12


def policy(name: str, budget: float = BUDGET, **more: Any) -> KvPolicyChoice:
    """A policy's choice, as a request names it."""
    options = {"budget": budget, "window": WINDOW, "num_sinks": NUM_SINKS} | more
    return KvPolicyChoice(type=name, options=options)


def reads_sums(name: str) -> bool:
    """Whether the policy scores by what sampled queries gave each token."""
    return "num_queries" in KV_POLICIES[name].Config.model_fields


def asked(
    name: str, seed: int = 0, kv_policy: KvPolicyChoice | None = None, **how: Any
) -> Generate:
    """A request with a prompt of LENGTH tokens."""
    how = {"max_tokens": NUM_OUTPUT, "num_logprobs": 2} | how
    return generate(name, prompt(seed, LENGTH), kv_policy=kv_policy, **how)


def scores(script: Script, name: str) -> list[float]:
    """Three numbers a token: its own log-probability and those of the two most likely."""
    lines = script.logprobs(name)
    return [number for line in lines for number in (line.logprob, *line.top_logprobs)]


def assert_transformers_answers_so(
    script: Script, name: str, family: str, folder: Path, visible: torch.Tensor
) -> None:
    """Each token and its probability are those of a model that is shown only what is `visible`.

    Shapes:
        visible: (prompt and answer, the same) of bool.
    """
    tokens = script.tokens(name)
    mask = torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)
    oracle = save_oracle(family, folder)
    token_ids = torch.tensor([prompt(0, LENGTH) + tokens])
    with torch.no_grad():
        logits = oracle(token_ids, attention_mask=mask[None, None]).logits[0]
    lines = logits[LENGTH - 1 : -1].log_softmax(-1)
    assert tokens == lines.argmax(-1).tolist()
    own = [line.logprob for line in script.logprobs(name)]
    assert own == pytest.approx(lines.max(-1).values.tolist(), abs=1e-4)


def assert_preemption_changes_no_answer(folder: Path, orders: list[Generate]) -> None:
    """An engine with too few blocks gives the answers of one with many."""
    tight = TinyEngine(folder, kv_cache_tokens=192)
    script = Script([(always, [*orders]), (ended(*orders), [])])
    loop = tight.start(script)
    tight.finish(loop, script)

    assert loop.hosts[BASE].scheduler.num_preemptions > 0
    assert_answered_alike(script, TinyEngine(folder).complete(*orders), orders)


def assert_answered_alike(script: Script, other: Script, orders: list[Generate]) -> None:
    """Both gave the same tokens, and kept and dropped as many of the prompt's."""
    for order in orders:
        name = order.request.request_id
        assert script.tokens(name) == other.tokens(name)
        assert last_counts(script, name) == last_counts(other, name)


def assert_members_are_compressed_each_for_itself(engine: TinyEngine, order: Generate) -> None:
    """A mixture is answered in small chunks as in one."""
    folder = engine.adapter("a", 4, ("q_proj", "k_proj", "v_proj"))
    order = mixed(order, (None, 0.4), (folder, 0.6))
    name = order.request.request_id

    tight = TinyEngine(engine.folder, max_batched_tokens=32)

    assert tight.complete(order).tokens(name) == engine.complete(order).tokens(name)


def last_counts(script: Script, name: str) -> tuple[int | None, int]:
    """Tokens kept and dropped, as told at an answer's end."""
    frame = script.frames(name)[-1]
    return frame.num_kept_tokens, frame.num_dropped_tokens


def poison_free_blocks(host: ModelHost) -> None:
    """Nothing that is read from a block without an owner is finite."""
    held = {block for sequence in host.scheduler.running for block in sequence.block_table}
    free = [b for b in range(1, host.runner.cache.num_blocks) if b not in held]
    host.runner.cache.storage[free] = float("nan")
