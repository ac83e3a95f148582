"""Queued jobs go where slack is largest, without anybody who decides.

Workers claim jobs themselves, under a lease. Each one leaves a queued job to the others for a while
that is the longer, the less slack it has, so the one with the most claims first. Nothing is
reserved: where that one is dead, or full, the next one's wait runs out.

Workers that are told of a job at once are in exact order of slack. One that only looks now and then
comes later by a period at most, which is half of the longest wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scheduler.domain.engine_stats import EngineStats

LONGEST_WAIT_PERIODS = 2.0


def serving_share(stats: EngineStats, max_num_sequences: int) -> float:
    """Share of an engine that requests take, 0 to 1: of its batch or of its memory."""
    num_sequences = stats.num_running + stats.num_waiting
    return min(1.0, max(num_sequences / max_num_sequences, stats.kv_usage))


def training_slack(serving: float, num_jobs: int) -> float:
    """Share of an engine that one more job would get, 0 to 1: jobs divide what requests leave."""
    return (1 - serving) / (num_jobs + 1)


class JobPatience:
    """Since when a worker knows of each queued job.

    Args:
        period_s: how often it looks for jobs.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._seen_s: dict[str, float] = {}

    def see(self, job_ids: Sequence[str], now_s: float) -> None:
        """These jobs are queued, and no others."""
        self._seen_s = {job_id: self._seen_s.get(job_id, now_s) for job_id in job_ids}

    def left_s(self, job_id: str, slack: float, now_s: float) -> float:
        """How much longer to leave a job that was seen to others; 0: it may be claimed."""
        wait_s = LONGEST_WAIT_PERIODS * self._period_s * (1 - slack)
        return max(0.0, self._seen_s[job_id] + wait_s - now_s)
