"""A worker keeps telling its newest steps, and each request once."""

from __future__ import annotations

from scheduler.domain.adapter_tier import AdapterTier, Tier
from scheduler.domain.engine_stats import EngineStats, RequestSample, StepSample
from scheduler.domain.messages import WorkerCapabilities
from scheduler.domain.request import FinishReason
from workers.agent.announcement import MAX_STEP_SAMPLES, Announcement

DISK = AdapterTier(
    tier=Tier.DISK, num_adapters=0, num_hits=0, num_misses=0, num_loads=0, num_evictions=0
)


def report(first: int, count: int) -> EngineStats:
    """Steps `first`, `first + 1`, ... and a request."""
    steps = [
        StepSample(
            index=index, decode_tokens=1, prefill_tokens=0, train_forward_tokens=0,
            train_backward_token_layers=0, step_ms=1.0,
        )
        for index in range(first, first + count)
    ]  # fmt: skip
    request = RequestSample(
        base_model="m", finish_reason=FinishReason.STOP, num_prompt_tokens=1, num_output_tokens=1,
        queue_s=0.0, ttft_s=0.1, e2e_s=0.1,
    )  # fmt: skip
    return EngineStats(
        num_running=first, num_waiting=0, kv_usage=0.0, num_free_blocks=1, num_blocks=1,
        num_preemptions=0, active_jobs=(),
        steps=tuple(steps), requests=(request,),
    )  # fmt: skip


def test_the_newest_steps_are_told_again_and_requests_once() -> None:
    capabilities = WorkerCapabilities(
        base_models=(), peft_methods={}, optimizers={}, objectives={},
        max_rank=1, max_num_sequences=1,
    )  # fmt: skip
    announcement = Announcement("w", "b", capabilities)
    assert announcement.take(DISK).stats is None

    announcement.add(report(0, MAX_STEP_SAMPLES + 5))
    first = announcement.take(DISK).stats
    announcement.add(report(MAX_STEP_SAMPLES + 5, 2))
    second = announcement.take(DISK).stats
    third = announcement.take(DISK).stats

    assert first is not None
    assert second is not None
    assert third is not None
    newest = MAX_STEP_SAMPLES + 7
    assert [step.index for step in first.steps] == list(range(5, MAX_STEP_SAMPLES + 5))
    assert [step.index for step in second.steps] == list(range(7, newest))
    assert third.steps == second.steps
    assert [len(stats.requests) for stats in (first, second, third)] == [1, 1, 0]
    assert second.num_running == MAX_STEP_SAMPLES + 5
