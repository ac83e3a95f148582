"""Answers by several models of one base: one token drawn from the sum of their weighted logits."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scheduler.domain.messages import Abort
from scheduler.domain.request import FinishReason
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    always,
    generate,
    mixed,
    prompt,
)
from tests.unit.workers.packed_run import PackedRun, make_resident, random_lora
from tests.unit.workers.tiny_models import VOCAB_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import ToEngine

Parts = list[tuple["Path | None", float]]
LORAS = {"a": (4, ("q_proj", "v_proj")), "b": (7, ("o_proj", "up_proj"))}
TOLERANCE = 1e-4


@pytest.fixture
def engine(tmp_path: Path) -> TinyEngine:
    return TinyEngine(tmp_path)


def lora(engine: TinyEngine, name: str) -> Path:
    return engine.adapter(name, *LORAS[name])


def mixture(engine: TinyEngine, a: float = 1.5, b: float = -0.75) -> Parts:
    """The base and two adapters; the weights add up to one."""
    return [(None, 1 - a - b), (lora(engine, "a"), a), (lora(engine, "b"), b)]


def reference_logits(engine: TinyEngine, parts: Parts, token_ids: list[int]) -> torch.Tensor:
    """The weighted sum of the members' logits, each from a forward of its own."""
    host = engine.start(Script([])).hosts[BASE]
    total = torch.zeros(len(token_ids), VOCAB_SIZE)
    for folder, weight in parts:
        columns = None
        if folder is not None:
            rank, modules = LORAS[folder.name]
            method, params = random_lora(engine.config, rank, rank, modules)
            columns = make_resident(host.adapters, folder.name, method, params)
        alone = PackedRun(host.runner.decoder, Random(0))
        stream = alone.add(token_ids, columns)
        while not alone.is_done:
            alone.step(max_chunk=len(token_ids))
        total += weight * torch.cat(stream.logits)
    return total


# ---- what is computed ------------------------------------------------------------------------


def test_tokens_and_scores_are_those_of_the_weighted_sum_of_separate_forwards(
    engine: TinyEngine,
) -> None:
    parts, asked = mixture(engine), prompt(1, 9)

    script = engine.complete(
        mixed(generate("r", asked, num_logprobs=5, prompt_logprobs=True), *parts)
    )

    tokens = script.tokens("r")
    want = reference_logits(engine, parts, asked + tokens[:-1])
    assert tokens == want[len(asked) - 1 :].argmax(-1).tolist()
    lines = want.log_softmax(-1)
    for score, line in zip(script.logprobs("r"), lines[len(asked) - 1 :], strict=True):
        top = line.topk(5)
        assert score.top_ids == tuple(top.indices.tolist())
        assert torch.allclose(torch.tensor(score.top_logprobs), top.values, atol=TOLERANCE)
    (_, *echoed) = script.frames("r")[0].prompt_logprobs or ()
    for own, line, token in zip(echoed, lines, asked[1:], strict=False):
        assert own is not None
        assert own.logprob == pytest.approx(float(line[token]), abs=TOLERANCE)
    assert len(echoed) == len(asked) - 1


def test_a_mixture_differs_from_each_of_its_members(engine: TinyEngine) -> None:
    parts = mixture(engine)
    alone = [generate(f"r{i}", prompt(1, 9), folder) for i, (folder, _) in enumerate(parts)]

    script = engine.complete(mixed(generate("r", prompt(1, 9)), *parts), *alone)

    assert len({tuple(script.tokens(name)) for name in ("r", "r0", "r1", "r2")}) == 4


def test_a_member_of_weight_nought_changes_no_bit(engine: TinyEngine) -> None:
    how: dict[str, Any] = {"num_logprobs": 3}
    parts: Parts = [(None, 1.0), (lora(engine, "a"), 0.0)]

    script = engine.complete(
        mixed(generate("r0", prompt(1, 9), **how), *parts),
        generate("r1", prompt(1, 9), **how),
    )

    assert script.tokens("r0") == script.tokens("r1")
    assert script.logprobs("r0") == script.logprobs("r1")


def test_all_the_weight_on_an_adapter_is_the_adapter(engine: TinyEngine) -> None:
    adapter = lora(engine, "a")
    parts: Parts = [(None, 0.0), (adapter, 1.0)]

    script = engine.complete(
        mixed(generate("r0", prompt(1, 9)), *parts), generate("r1", prompt(1, 9), adapter)
    )

    assert script.tokens("r0") == script.tokens("r1") != []


# ---- however it is scheduled -----------------------------------------------------------------


def test_chunks_and_other_tenants_change_no_token(tmp_path: Path) -> None:
    roomy, narrow = TinyEngine(tmp_path), TinyEngine(tmp_path, max_batched_tokens=16)
    parts, asked = mixture(roomy), prompt(1, 90)
    alone = roomy.complete(mixed(generate("r", asked), *parts)).tokens("r")
    others = [
        generate(f"o{i}", prompt(i, 7 * i + 1), lora(roomy, "b"), tenant_id=f"t{i}")
        for i in range(4)
    ]

    script = narrow.complete(*others[:2], mixed(generate("r", asked), *parts), *others[2:])
    undisturbed = narrow.complete(*others)

    assert script.tokens("r") == alone
    for order in others:
        name = order.request.request_id
        assert script.tokens(name) == undisturbed.tokens(name)


def test_preempted_mixtures_are_those_of_an_engine_with_room(tmp_path: Path) -> None:
    tight = TinyEngine(tmp_path, kv_cache_tokens=192)
    parts = mixture(tight)
    orders = [mixed(generate(f"r{i}", prompt(i, 10), max_tokens=40), *parts) for i in range(3)]
    roomy = TinyEngine(tmp_path).complete(*orders)

    script = Script(
        [(always, [*orders]), (lambda s: all(s.is_answered(f"r{i}") for i in range(3)), [])]
    )
    loop = tight.start(script)
    tight.finish(loop, script)

    assert loop.hosts[BASE].scheduler.num_preemptions > 0
    for i in range(3):
        assert script.tokens(f"r{i}") == roomy.tokens(f"r{i}")
        assert len(script.tokens(f"r{i}")) == 40


def test_an_answer_ends_where_the_kv_cache_of_all_members_does(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, kv_cache_tokens=192)

    script = engine.complete(mixed(generate("r", prompt(1, 40), max_tokens=200), *mixture(engine)))

    assert len(script.tokens("r")) + 40 == 63
    assert script.frames("r")[-1].finish_reason is FinishReason.LENGTH


def test_several_seeded_answers_repeat_and_differ(engine: TinyEngine) -> None:
    parts = mixture(engine)
    how: dict[str, Any] = {"n": 3, "temperature": 1.0, "seed": 7}

    script = engine.complete(
        mixed(generate("r0", prompt(1, 9), **how), *parts),
        mixed(generate("r1", prompt(1, 9), **how), *parts),
    )

    first = [script.tokens("r0", index) for index in range(3)]
    assert first == [script.tokens("r1", index) for index in range(3)]
    assert len(set(map(tuple, first))) == 3


def test_more_adapters_than_fit_at_once_are_mixed_one_request_after_the_other(
    tmp_path: Path,
) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8)  # 16 columns
    a, b = lora(engine, "a"), lora(engine, "b")
    c = engine.adapter("c", 8, ("q_proj",))
    pairs: list[Parts] = [[(a, 2.0), (c, -1.0)], [(b, 2.0), (c, -1.0)], [(a, 0.5), (b, 0.5)]]
    orders = [mixed(generate(f"r{i}", prompt(i, 6)), *parts) for i, parts in enumerate(pairs * 2)]
    roomy = TinyEngine(tmp_path).complete(*orders)

    script = engine.complete(*orders)

    for order in orders:
        name = order.request.request_id
        assert script.tokens(name) == roomy.tokens(name) != []


def test_a_resident_member_in_the_middle_of_the_columns_does_not_shut_the_other_out(
    tmp_path: Path,
) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8)  # 16 columns
    first, middle = engine.adapter("f", 6, ("q_proj",)), engine.adapter("m", 4, ("q_proj",))
    wide = engine.adapter("w", 8, ("v_proj",))

    script = engine.run(
        (always, [generate("r0", prompt(1, 5), first)]),
        (lambda s: s.is_answered("r0"), [generate("r1", prompt(1, 5), middle)]),
        (
            lambda s: s.is_answered("r1"),
            [mixed(generate("r2", prompt(1, 5), max_tokens=3), (middle, 2.0), (wide, -1.0))],
        ),
        (lambda s: s.is_answered("r2"), []),
    )

    assert len(script.tokens("r2")) == 3


# ---- how it ends -----------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_an_abort_frees_every_member(engine: TinyEngine, num_tokens: int) -> None:
    order = mixed(generate("r", prompt(1, 9), max_tokens=200, n=2), *mixture(engine))
    leaves: list[ToEngine] = [Abort(request_id="r")]

    script = engine.run((always, [order]), (lambda s: len(s.tokens("r")) >= num_tokens, leaves))

    assert len(script.tokens("r")) < 200  # that nothing is held is asserted at every end


def test_what_can_never_be_mixed_is_refused_and_the_rest_goes_on(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, max_num_sequences=2, adapter_slots=1, max_rank=8)
    other = TinyEngine(tmp_path / "other", "llama", max_rank=8)
    wide = [engine.adapter(f"w{i}", 8, ("q_proj",), seed=i) for i in range(2)]
    gone = engine.adapter("gone", 3, ("q_proj",))
    for path in gone.glob("adapter_*"):
        path.unlink()
    over = engine.adapter("over", 9, ("q_proj",))

    script = engine.complete(
        mixed(generate("r0", prompt(1, 5)), (None, 1.0), (wide[0], 1.0), (wide[1], -1.0)),
        mixed(generate("r1", prompt(1, 5)), (wide[0], 2.0), (gone, -1.0)),
        mixed(generate("r2", prompt(1, 5)), (wide[0], 2.0), (over, -1.0)),
        mixed(
            generate("r3", prompt(1, 5)),
            (other.adapter("x", 4, ("q_proj", "o_proj")), 1.0),
            (None, 0),
        ),
        mixed(generate("r4", prompt(1, 5)), (wide[0], 2.0), (wide[1], -1.0)),
    )

    codes = {f"r{i}": script.frames(f"r{i}")[-1].error_code for i in range(5)}
    assert codes == {f"r{i}": "invalid_value" for i in range(4)} | {"r4": None}
    assert "mixes at most 2" in (script.frames("r0")[-1].error or "")


def test_ranks_that_never_fit_together_are_refused(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path, adapter_slots=1, max_rank=8)
    parts: Parts = [(engine.adapter(f"w{i}", 6, ("q_proj",), seed=i), 1.0) for i in range(3)]

    script = engine.complete(mixed(generate("r", prompt(1, 5)), *parts))

    assert "add up to 18" in (script.frames("r")[-1].error or "")


def test_logits_of_a_member_that_are_not_finite_fail_the_answer(engine: TinyEngine) -> None:
    def explode(params: dict[str, torch.Tensor]) -> None:
        for name, tensor in params.items():
            tensor.fill_(1e30 if "lora_B" in name else 1e10)

    bad = engine.adapter("bad", 4, ("o_proj",), edit=explode)

    script = engine.complete(
        mixed(generate("r0", prompt(1, 5)), (None, 0.5), (bad, 0.5)),
        mixed(generate("r1", prompt(1, 5)), *mixture(engine)),
    )

    assert script.frames("r0")[-1].error_code == "not_finite"
    assert len(script.tokens("r1")) == 8
