from __future__ import annotations

import pytest

from benchmarks.cell import CellRound, attainment, cell_figures, targets_of, within
from benchmarks.load import RequestTimes
from benchmarks.phase import PhaseResult
from scheduler.policy.slack import SloTargets


def answered(ttft_ms: float, tpot_ms: float, num_tokens: int = 5) -> RequestTimes:
    times = [(ttft_ms + i * tpot_ms) / 1e3 for i in range(num_tokens)]
    return RequestTimes(sent_s=0.0, token_s=times)


def phase(
    output: float = 0.0, train: float = 0.0, requests: list[RequestTimes] | None = None
) -> PhaseResult:
    return PhaseResult(10.0, output, train, requests or [], [])


def test_a_request_takes_the_mean_of_its_gaps() -> None:
    request = answered(ttft_ms=100, tpot_ms=20)

    assert request.ttft_ms == pytest.approx(100)
    assert request.tpot_ms == pytest.approx(20)


def test_targets_are_multiples_of_inference_alone_and_ttft_is_at_least_the_default() -> None:
    quick = phase(requests=[answered(100, 20)])
    slow = phase(requests=[answered(400, 20)])

    assert targets_of(quick, 1.5) == SloTargets(500.0, pytest.approx(30))
    assert targets_of(slow, 2.0) == SloTargets(pytest.approx(800), pytest.approx(40))


def test_there_is_no_target_where_nothing_was_answered() -> None:
    with pytest.raises(RuntimeError, match="No request was answered in 10 s"):
        targets_of(phase(), 1.5)


def test_eta_adds_the_shares_of_each_round_and_takes_the_median() -> None:
    targets = SloTargets(500.0, 30.0)
    rounds = [  # 80/100 + 50/200 = 1.05, 60/100 + 100/200 = 1.1, 90/100 + 20/200 = 1.0
        CellRound(phase(output, train, [answered(100, 25)]), phase(100), phase(0, 200), targets)
        for output, train in ((80, 50), (60, 100), (90, 20))
    ]

    figures = cell_figures(rounds)

    assert figures["eta"]["median"] == pytest.approx(1.05)
    assert figures["eta"]["high"] == pytest.approx(1.1)
    assert figures["attainment"]["requests"] == 3


def test_a_request_meets_both_targets_or_misses() -> None:
    targets = SloTargets(500.0, 30.0)
    requests = [answered(100, 25), answered(600, 25), answered(100, 35), answered(100, 25)]

    met = attainment([within(request, targets) for request in requests])

    assert met == {"requests": 4, "ttft": 0.75, "tpot": 0.75, "both": 0.5}
