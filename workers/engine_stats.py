"""Counts what the engine does, and reports twice a second."""

from __future__ import annotations

import time

from scheduler.domain.messages import EngineStats, RequestSample, StepSample
from scheduler.domain.plan import StepPlan
from scheduler.policy.pack_cursor import Direction, Unit
from workers.model_host import ModelHost

REPORT_EVERY_S = 0.5
MAX_SAMPLES = 512  # steps and requests of one report; more are counted in the totals only


class EngineMeter:
    """Samples since the last report, and totals since the start."""

    def __init__(self) -> None:
        self._due_s = time.monotonic()
        self._steps: list[StepSample] = []
        self._requests: list[RequestSample] = []
        self._prompt_tokens = 0
        self.output_tokens = 0

    def is_due(self) -> bool:
        """Whether the next report is due."""
        return time.monotonic() >= self._due_s

    def count_step(self, plan: StepPlan, units: list[Unit], step_ms: float) -> None:
        """Remember one step."""
        decode = sum(1 for span in plan.spans if span.count == 1)
        backward = sum(u.num_tokens for u in units if u.direction is Direction.BACKWARD)
        forward = sum(
            u.num_tokens for u in units if u.direction is Direction.FORWARD and u.layer == 0
        )
        if len(self._steps) < MAX_SAMPLES:
            self._steps.append(
                StepSample(
                    decode_tokens=decode,
                    prefill_tokens=plan.num_inference_tokens - decode,
                    train_forward_tokens=plan.num_window_tokens + forward,
                    train_backward_token_layers=backward,
                    step_ms=step_ms,
                    predicted_ms=plan.predicted_ms,
                    slack_ms=plan.slack_ms,
                )
            )

    def count_request(self, sample: RequestSample) -> None:
        """Remember one ended sequence."""
        self._prompt_tokens += sample.num_prompt_tokens
        if len(self._requests) < MAX_SAMPLES:
            self._requests.append(sample)

    def report(self, hosts: list[ModelHost]) -> EngineStats:
        """Gauges, totals, and the samples since the last report."""
        self._due_s = time.monotonic() + REPORT_EVERY_S
        steps, self._steps = tuple(self._steps), []
        requests, self._requests = tuple(self._requests), []
        blocks = sum(host.scheduler.pool.num_blocks for host in hosts)
        free = sum(host.scheduler.pool.num_free for host in hosts)
        return EngineStats(
            num_running=sum(len(host.scheduler.running) for host in hosts),
            num_waiting=sum(len(host.scheduler.waiting) for host in hosts),
            kv_usage=1 - free / blocks,
            num_free_blocks=free,
            num_blocks=blocks,
            num_preemptions=sum(host.scheduler.num_preemptions for host in hosts),
            resident_adapters=tuple(key for host in hosts for key in host.adapters.resident),
            active_jobs=tuple(job for host in hosts for job in host.trainer.active),
            steps=steps,
            requests=requests,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self.output_tokens,
            trained_tokens=sum(host.trainer.trained_tokens for host in hosts),
        )
