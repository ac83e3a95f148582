"""Every answer comes from the adapter that was asked for, however often adapters change places.

Each adapter is known by its tag: what it answers, alone, to the one prompt that all callers send.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.messages import Abort, Drain, Frames
from tests.integration.engine_driver import (
    BASE,
    TinyEngine,
    always,
    assert_nothing_is_held,
    generate,
)
from workers.engine import EngineLoop

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import FromEngine, ToEngine

PROMPT = [3, 14, 15, 92, 65]
NUM_ADAPTERS = 40  # of rank 8, where 6 fit
IN_FLIGHT = 24
TAG_TOKENS = 4
ABORTED_SHARE = 0.05

Tag = tuple[int, ...]


@dataclass
class Callers:
    """The agent's end: keeps requests of random adapters in flight, and compares every answer."""

    adapters: list[Path]
    tags: list[Tag]
    num_requests: int
    random: Random = field(default_factory=lambda: Random(7))
    asked: dict[str, int] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    num_sent: int = 0
    num_right: int = 0
    num_aborted: int = 0
    wrong: list[tuple[int, Tag]] = field(default_factory=list)

    def poll(self, timeout_s: float) -> list[ToEngine]:
        """New requests in place of those that were answered; some callers leave."""
        del timeout_s
        if self.num_sent == self.num_requests and not self.asked:
            return [Drain()]
        orders: list[ToEngine] = []
        while len(self.asked) < IN_FLIGHT and self.num_sent < self.num_requests:
            orders.append(self._request())
        if self.asked and self.num_aborted < ABORTED_SHARE * (self.num_sent - IN_FLIGHT):
            name = self.random.choice(sorted(self.asked))
            del self.asked[name], self.answers[name]
            self.num_aborted += 1
            orders.append(Abort(request_id=name))
        return orders

    def send(self, message: FromEngine) -> None:
        """Tokens and ends of answers."""
        for frame in message.frames if isinstance(message, Frames) else ():
            if frame.request_id not in self.asked:
                continue  # its caller has left
            assert frame.error is None
            self.answers[frame.request_id] += frame.token_ids
            if frame.finish_reason is not None:
                self._compare(frame.request_id)

    def _request(self) -> ToEngine:
        name, place = f"r{self.num_sent}", self.random.randrange(len(self.adapters))
        self.num_sent += 1
        self.asked[name], self.answers[name] = place, []
        return generate(
            name, PROMPT, self.adapters[place], max_tokens=TAG_TOKENS, tenant_id=f"t{place % 5}"
        )

    def _compare(self, name: str) -> None:
        place, answer = self.asked.pop(name), tuple(self.answers.pop(name))
        if answer == self.tags[place]:
            self.num_right += 1
        else:
            self.wrong.append((place, answer))


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    """Room for 6 adapters in slots and some 15 in host memory."""
    return TinyEngine(tmp_path, adapter_slots=3, max_rank=8, adapter_ram_bytes=1 << 18)


def tagged(engine: TinyEngine) -> tuple[list[Path], list[Tag]]:
    """Adapters, and what each answers alone; no two answer the same."""
    adapters = [
        engine.adapter(f"a{i}", 8, ("q_proj", "v_proj", "down_proj"), seed=i, scale=0.5)
        for i in range(NUM_ADAPTERS)
    ]
    script = engine.run(
        *(
            (
                always if i == 0 else lambda s, i=i: s.is_answered(f"r{i - 1}"),
                [generate(f"r{i}", PROMPT, adapter, max_tokens=TAG_TOKENS)],
            )
            for i, adapter in enumerate(adapters)
        ),
        (lambda s: s.is_answered(f"r{NUM_ADAPTERS - 1}"), []),
    )
    tags = [tuple(script.tokens(f"r{i}")) for i in range(NUM_ADAPTERS)]
    assert len(set(tags)) == NUM_ADAPTERS
    return adapters, tags


@pytest.mark.parametrize("num_requests", [500, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_no_answer_is_crossed_with_another_adapters(engine: TinyEngine, num_requests: int) -> None:
    callers = Callers(*tagged(engine), num_requests)
    loop = EngineLoop(engine.settings, callers)

    loop.run()

    assert callers.wrong == []
    assert callers.num_right == num_requests - callers.num_aborted > 0.8 * num_requests
    assert_nothing_is_held(loop.hosts[BASE])
    slots, ram = loop.requests.adapter_tiers()
    assert slots.num_adapters < NUM_ADAPTERS
    assert 0 < ram.num_adapters < NUM_ADAPTERS
    assert min(slots.num_hits, slots.num_evictions, ram.num_hits, ram.num_misses) > 0


def test_a_version_that_moves_under_a_name_is_served_at_once_and_the_old_one_to_its_end(
    engine: TinyEngine,
) -> None:
    old, new = (
        engine.adapter(f"v{seed}/same", 8, ("q_proj", "v_proj"), seed=seed, scale=0.5)
        for seed in (1, 2)
    )
    alone = {
        folder: engine.run(
            (always, [generate("r", PROMPT, folder, max_tokens=60)]),
            (lambda s: s.is_answered("r"), []),
        ).tokens("r")
        for folder in (old, new)
    }

    script = engine.run(
        (always, [generate("before", PROMPT, old, max_tokens=60)]),
        (
            lambda s: len(s.tokens("before")) > 5,
            [generate("after", PROMPT, new, max_tokens=20), generate("base", PROMPT)],
        ),
        (lambda s: s.is_answered("before") and s.is_answered("after"), []),
    )

    assert script.tokens("before") == alone[old]
    assert script.tokens("after") == alone[new][:20]
    assert alone[old] != alone[new]
    assert not script.frames("after")[0].num_cached_tokens
