"""Adapters of requests: read in time, and more of them than fit."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scheduler.domain.messages import (
    Abort,
)
from tests.integration.engine_driver import TinyEngine, always, ended, generate, prompt

if TYPE_CHECKING:
    from pathlib import Path


def test_requests_of_more_adapters_than_fit_are_all_ended(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8)
    adapters = [engine.adapter(f"a{i}", 8, ("q_proj", "v_proj"), seed=i) for i in range(5)]
    orders = [generate(f"r{i}", prompt(i, 6), adapters[i % 5], n=1 + i % 2) for i in range(15)]

    script = engine.complete(orders[0], *orders)

    assert all(len(script.tokens(f"r{i}")) == 8 for i in range(1, 15))


def test_a_waiting_request_for_a_resident_adapter_does_not_block_one_that_needs_its_columns(
    tmp_path: Path,
) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8, max_num_sequences=1)
    old, new = (engine.adapter(name, 16 // 2, ("q_proj",)) for name in ("old", "new"))
    third = engine.adapter("third", 8, ("v_proj",))

    warm = [generate("warm", prompt(1, 4), old), generate("warm2", prompt(1, 4), third)]
    orders = [
        generate("r0", prompt(1, 4), new),
        generate("r1", prompt(2, 4), old),
        generate("r2", prompt(2, 4), third),
    ]

    script = engine.run((always, [*warm]), (ended(*warm), [*orders]), (ended(*orders), []))

    assert all(len(script.tokens(f"r{i}")) == 8 for i in range(3))


def test_an_adapter_that_takes_long_to_read_holds_up_its_own_request_only(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    slow = engine.adapter("slow", 4, ("q_proj",), seed=1)
    quick = engine.adapter("quick", 4, ("q_proj",), seed=2)
    config = slow / "adapter_config.json"
    content = config.read_bytes()
    config.unlink()
    os.mkfifo(config)  # whoever opens it waits for a writer

    script = engine.run(
        (
            always,
            [
                generate("cold", prompt(1, 5), slow),
                generate("r0", prompt(2, 5), quick, max_tokens=40),
                generate("r1", prompt(3, 5), max_tokens=40, tenant_id="other"),
            ],
        ),
        (lambda s: s.is_answered("r0") and s.is_answered("r1"), [generate("r2", prompt(4, 5))]),
        (lambda s: s.is_answered("r2") and bool(config.write_bytes(content)), []),
        (lambda s: s.is_answered("cold"), []),
    )

    assert len(script.tokens("cold")) == 8


def test_a_request_that_leaves_while_its_adapter_is_read_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    engine = TinyEngine(tmp_path)
    slow = engine.adapter("slow", 4, ("q_proj",))
    config = slow / "adapter_config.json"
    content = config.read_bytes()
    config.unlink()
    os.mkfifo(config)

    script = engine.run(
        (always, [generate("gone", prompt(1, 5), slow), generate("r0", prompt(2, 5))]),
        (lambda s: s.is_answered("r0"), [Abort(request_id="gone")]),
        (lambda _: bool(config.write_bytes(content)), [generate("r1", prompt(2, 5))]),
        (lambda s: s.is_answered("r1"), []),
    )

    assert script.frames("gone") == []


def test_without_host_memory_adapters_come_from_the_disk_and_answer_the_same(
    tmp_path: Path,
) -> None:
    answered = []
    for ram in (0, 1 << 30):
        engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8, adapter_ram_bytes=ram)
        adapters = [engine.adapter(f"a{i}", 8, ("q_proj", "v_proj"), seed=i) for i in range(4)]
        orders = [generate(f"r{i}", prompt(i, 6), adapters[i % 4]) for i in range(12)]
        script = engine.complete(*orders)
        answered.append([script.tokens(f"r{i}") for i in range(12)])

    assert answered[0] == answered[1]
