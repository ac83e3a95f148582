"""The worker with the most slack claims a queued job first; when it cannot, the next one does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.engine_stats import EngineStats
from scheduler.policy.job_placement import (
    LONGEST_WAIT_PERIODS,
    JobPatience,
    serving_share,
    training_slack,
)

PERIOD_S = 1.0
shares = st.floats(0, 1)
workers = st.tuples(shares, st.integers(0, 8))  # what requests take, and jobs


def claim_time_s(slack: float, first_look_s: float) -> float:
    """When a worker claims a job that it sees first at that time."""
    patience = JobPatience(PERIOD_S)
    now_s = first_look_s
    patience.see(["job"], now_s)
    while left_s := patience.left_s("job", slack, now_s):
        now_s += left_s
        patience.see(["job"], now_s)
    return now_s


@given(st.lists(workers, min_size=2, max_size=6))
def test_workers_that_are_told_at_once_claim_in_order_of_their_slack(
    cluster: list[tuple[float, int]],
) -> None:
    slacks = [training_slack(serving, num_jobs) for serving, num_jobs in cluster]

    times_s = [claim_time_s(slack, 0.0) for slack in slacks]

    first = times_s.index(min(times_s))
    assert slacks[first] == pytest.approx(max(slacks), abs=1e-9)
    assert max(times_s) <= LONGEST_WAIT_PERIODS * PERIOD_S + 1e-9


@given(st.floats(0, 0.49), st.floats(0, 1), st.floats(0, PERIOD_S))
def test_half_an_engine_more_slack_wins_even_for_one_that_was_told_nothing(
    less: float, place: float, first_look_s: float
) -> None:
    least_more = less + 1 / LONGEST_WAIT_PERIODS + 1e-6
    more = least_more + place * (1 - least_more)

    assert claim_time_s(more, first_look_s) < claim_time_s(less, 0.0)


@given(shares, st.integers(0, 8))
def test_slack_falls_with_requests_and_with_jobs(serving: float, num_jobs: int) -> None:
    slack = training_slack(serving, num_jobs)

    assert 0 <= slack <= 1
    assert training_slack(serving, num_jobs + 1) <= slack
    assert training_slack(min(1.0, serving + 0.1), num_jobs) <= slack


def test_a_job_that_was_gone_in_between_is_waited_for_anew() -> None:
    patience = JobPatience(PERIOD_S)
    patience.see(["job"], 0.0)
    patience.see([], 1.5)
    patience.see(["job"], 1.9)

    assert patience.left_s("job", 0.0, 2.0) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("running", "waiting", "kv_usage", "share"),
    [(0, 0, 0.0, 0.0), (2, 1, 0.1, 0.75), (1, 0, 0.5, 0.5), (4, 60, 0.2, 1.0)],
)
def test_requests_take_their_share_of_the_batch_or_of_the_memory(
    running: int, waiting: int, kv_usage: float, share: float
) -> None:
    stats = EngineStats(
        num_running=running, num_waiting=waiting, kv_usage=kv_usage, num_free_blocks=1,
        num_blocks=1, num_preemptions=0, active_jobs=(),
    )  # fmt: skip

    assert serving_share(stats, max_num_sequences=4) == share
