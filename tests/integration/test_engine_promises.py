"""What the engine promises: serving and training do not feel each other, nor tenants, nor stops."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from scheduler.domain.messages import CheckpointWritten, JobStopped, StopJob
from scheduler.domain.request import FinishReason
from tests.integration.engine_driver import (
    BASE,
    Script,
    TinyEngine,
    always,
    ended,
    generate,
    prompt,
)
from workers.model import MODULE_PATHS

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.messages import Generate
    from workers.peft_method import Params

ALL = tuple(MODULE_PATHS)


def mixed_requests(engine: TinyEngine) -> list[Generate]:
    """Sixteen requests of five adapters and the base."""
    folders = [
        None,
        engine.adapter("a", 2, ("q_proj", "v_proj")),
        engine.adapter("b", 8, ALL),
        engine.adapter("c", 5, ("o_proj", "down_proj")),
        engine.adapter("d", 16, ALL),
        engine.adapter("e", 1, ("gate_proj",)),
    ]
    return [
        generate(f"r{i}", prompt(i, 1 + 5 * i), folders[i % len(folders)], max_tokens=24)
        for i in range(16)
    ]


def test_greedy_tokens_are_the_same_alone_in_a_batch_and_beside_training(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    requests = mixed_requests(engine)
    names = [order.request.request_id for order in requests]
    jobs = [
        engine.job("j1", engine.data("one", Random(1)), n_epochs=50, method_config={"rank": 8}),
        engine.job("j2", engine.data("two", Random(2)), n_epochs=50, tenant_id="other"),
    ]

    alone = {name: engine.complete(order) for name, order in zip(names, requests, strict=True)}
    batch = engine.complete(*requests)
    beside = engine.run(
        (always, [*jobs]),
        (lambda s: all(s.steps(job.job_id) for job in jobs), [*requests]),
        (ended(*requests), []),
    )

    for name in names:
        assert len(alone[name].tokens(name)) == 24
        assert batch.tokens(name) == alone[name].tokens(name)
        assert beside.tokens(name) == alone[name].tokens(name)


def losses(script: Script, job_id: str = "job") -> list[tuple[float, float]]:
    return [(step.train_loss, step.grad_norm) for step in script.steps(job_id)]


def final_tensors(script: Script, job_id: str = "job") -> Params:
    (final,) = [m for m in script.of(CheckpointWritten) if m.job_id == job_id and m.final]
    return load_file(f"{final.path}/adapter/adapter_model.safetensors")


def assert_equal_tensors(left: Params, right: Params) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_a_job_that_runs_alone_repeats_itself_bit_for_bit(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    data = engine.data("train", Random(3))

    runs = [engine.complete(engine.job("job", data, root=root)) for root in ("first", "second")]

    assert len(losses(runs[0])) == 6
    assert losses(runs[0]) == losses(runs[1])
    assert_equal_tensors(final_tensors(runs[0]), final_tensors(runs[1]))


def test_a_job_beside_serving_follows_the_same_curve_within_tolerance(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    data = engine.data("train", Random(3))
    requests = mixed_requests(engine)

    job = engine.job("job", data, root="mixed")

    alone = engine.complete(engine.job("job", data, root="alone"))
    mixed = engine.run(
        (always, [job, *requests[:8]]),
        (lambda s: bool(s.steps("job")), [*requests[8:]]),
        (ended(job, *requests), []),
    )

    for (loss, norm), (mixed_loss, mixed_norm) in zip(losses(alone), losses(mixed), strict=True):
        assert mixed_loss == pytest.approx(loss, rel=1e-4)
        assert mixed_norm == pytest.approx(norm, rel=1e-3)


def test_a_deterministic_job_keeps_every_bit_beside_serving(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    data = engine.data("train", Random(3))
    requests = mixed_requests(engine)

    job = engine.job("job", data, root="mixed", deterministic=True)

    alone = engine.complete(engine.job("job", data, root="alone", deterministic=True))
    mixed = engine.run(
        (always, [job, *requests[:8]]),
        (lambda s: bool(s.steps("job")), [*requests[8:]]),
        (ended(job, *requests), []),
    )

    assert losses(alone) == losses(mixed)
    assert_equal_tensors(final_tensors(alone), final_tensors(mixed))


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_resumed_job_is_bit_equal_to_an_unbroken_one(tmp_path: Path, stop_after: int) -> None:
    engine = TinyEngine(tmp_path)
    data = engine.data("train", Random(4))
    how = {"n_epochs": 3, "batch_size": 3, "gradient_accumulation_steps": 2}
    whole = engine.complete(engine.job("job", data, root="whole", **how))

    broken = engine.run(
        (always, [engine.job("job", data, root="broken", **how)]),
        (
            lambda s: len(s.steps("job")) >= stop_after,
            [StopJob(job_id="job", checkpoint=True)],
        ),
        (lambda s: s.has_ended("job"), []),
    )
    (written,) = broken.of(CheckpointWritten)
    resumed = engine.complete(
        engine.job("job", data, root="resumed", resume_from=written.path, **how)
    )

    assert written.step == stop_after
    assert losses(broken) + losses(resumed) == losses(whole)
    assert_equal_tensors(final_tensors(resumed), final_tensors(whole))


def blow_up(params: Params) -> None:
    for name, tensor in params.items():
        tensor[:] = 1e30 if "lora_A" in name else 1.0


def spoil(params: Params) -> None:
    next(iter(params.values()))[0, 0] = float("nan")


@pytest.mark.parametrize("kind", ["other", "huge"])
def test_changing_one_tenants_adapter_leaves_anothers_logprobs_equal_bit_for_bit(
    tmp_path: Path, kind: str
) -> None:
    engine = TinyEngine(tmp_path)
    ours = [engine.adapter("ours", 4, ALL), engine.adapter("also_ours", 2, ("v_proj",))]
    foreign = [
        engine.adapter("foreign", 6, ALL),
        engine.adapter("foreign2", 6, ALL, seed=99, edit=blow_up if kind == "huge" else None),
    ]
    ask = [
        generate(f"r{i}", prompt(i, 12), ours[i % 2], max_tokens=12, num_logprobs=5)
        for i in range(4)
    ]

    runs = [
        engine.complete(*ask[:2], generate("b", prompt(9, 12), other), *ask[2:])
        for other in foreign
    ]

    for i in range(4):
        first, second = ([f.logprobs for f in run.frames(f"r{i}")] for run in runs)
        shared = 1 if kind == "huge" else 12  # steps in which both batches have the same rows
        assert first[:shared] == second[:shared]
        assert runs[0].tokens(f"r{i}") == runs[1].tokens(f"r{i}")
    if kind == "huge":
        assert runs[1].frames("b")[-1].finish_reason is FinishReason.ERROR
        assert runs[1].frames("b")[-1].error_code == "not_finite"


def too_big(params: Params) -> None:
    for name, tensor in params.items():
        if "lora_B" in name:
            tensor[:] = 3e38  # finite in the file, infinite once scaled by 2


def test_an_adapter_that_overflows_is_refused_and_leaves_its_columns_zero(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    good, bad = engine.adapter("good", 4, ALL), engine.adapter("bad", 4, ALL, edit=too_big)
    script = Script(
        [
            (always, [generate("bad", prompt(1, 9), bad, n=2), generate("ok", prompt(2, 9), good)]),
            (lambda s: s.is_answered("ok"), []),
        ]
    )
    loop = engine.start(script)

    engine.finish(loop, script)

    assert script.frames("bad")[-1].error_code == "invalid_value"
    assert len(script.tokens("ok")) == 8
    arena = loop.hosts[BASE].adapters.arena
    assert all(bool(torch.isfinite(matrix).all()) for matrix in arena.matrices())
    assert len(loop.hosts[BASE].adapters.resident) == 1


def test_an_adapter_that_holds_nan_is_refused(tmp_path: Path) -> None:
    engine = TinyEngine(tmp_path)
    bad = engine.adapter("bad", 4, ALL, edit=spoil)

    script = engine.complete(generate("bad", prompt(1, 9), bad))

    (frame,) = script.frames("bad")
    assert frame.error_code == "invalid_value"
    assert "NaN" in (frame.error or "")


def test_a_diverging_job_publishes_nothing_and_hurts_nobody(tmp_path: Path) -> None:
    """In float16 the job's scaled weights pass 65504 and would be infinite in the shared arena."""
    engine = TinyEngine(tmp_path, dtype="float16")
    data = engine.data("train", Random(5))
    wild = engine.job(
        "wild", data, n_epochs=50, learning_rate=1.0, max_grad_norm=1e9, lr_schedule="constant",
        warmup_ratio=0.0, method_config={"rank": 1, "alpha": 4096},
    )  # fmt: skip
    tame = engine.job("tame", data, tenant_id="other")
    adapters = [engine.adapter("a", 4, ALL), engine.adapter("b", 3, ALL)]
    requests = [generate(f"r{i}", prompt(i, 9), adapters[i % 2], max_tokens=30) for i in range(4)]

    script = engine.run(
        (always, [requests[0]]),
        (lambda s: bool(s.tokens("r0")), [wild, tame]),
        (lambda s: s.has_ended("wild"), [*requests[1:]]),
        (ended(tame, *requests), []),
    )

    (stopped,) = script.of(JobStopped)
    assert (stopped.job_id, stopped.error_code) == ("wild", "training_diverged")
    assert {m.job_id for m in script.of(CheckpointWritten)} == {"tame"}
    assert [len(script.tokens(f"r{i}")) for i in range(4)] == [30] * 4
