from __future__ import annotations

from benchmarks.allocation import highest_rise
from benchmarks.first_token import first_token_figures
from benchmarks.load import StopRule
from benchmarks.peer_figures import product_ratio
from benchmarks.peers.prompts import OUTPUT_TOKENS, PROMPT_TOKENS, first_output_tokens, lengths
from benchmarks.phase import PhaseResult
from benchmarks.plan import PLANS


def test_a_phase_ends_with_enough_time_and_requests_or_at_its_bound() -> None:
    rule = StopRule(seconds=10, requests=60, max_s=100)

    assert not rule.is_met(elapsed_s=20, num_requests=59)
    assert not rule.is_met(elapsed_s=9, num_requests=90)
    assert rule.is_met(elapsed_s=20, num_requests=60)
    assert rule.is_met(elapsed_s=100, num_requests=0)


def test_the_full_plan_asks_for_three_hundred_requests() -> None:
    plan = PLANS["full"]

    assert plan.rounds * plan.both.requests >= 300


def test_lengths_are_250_and_64_on_average() -> None:
    prompts, outputs = zip(*map(lengths, range(400)), strict=True)

    assert abs(sum(prompts) / 400 - 250) < 5
    assert abs(sum(outputs) / 400 - 64) < 2
    assert PROMPT_TOKENS[0] <= min(prompts)
    assert max(outputs) <= OUTPUT_TOKENS[1]


def test_streams_begin_apart() -> None:
    first = [first_output_tokens(stream, 8) for stream in range(8)]

    assert first == sorted(set(first))
    assert first_output_tokens(0, 128) >= 2


def test_the_peak_is_the_highest_climb() -> None:
    assert highest_rise([5, -5, 3, 4, -2, 3, -8]) == 8
    assert highest_rise([]) == 0


def test_a_rate_product_is_compared_round_by_round_where_there_is_one() -> None:
    ours = [PhaseResult(1.0, 100.0, 200.0, [], [])] * 2
    beside = [
        {"output_tokens_per_s": 10.0, "train_tokens_per_s": 100.0},
        {"output_tokens_per_s": 10.0, "train_tokens_per_s": 0.0},
    ]

    ratio = product_ratio(ours, beside)

    assert ratio["median"] == 20.0
    assert ratio["low"] == ratio["high"] == 20.0  # the other round compares with nothing


def test_training_adds_the_difference_of_the_distributions_and_of_each_request() -> None:
    figures = first_token_figures([10.0, 20.0, 30.0], [15.0, 22.0, 60.0])

    assert figures["added_p50_ms"] == 2.0
    assert figures["added_p99_ms"] == 30.0
    assert figures["added_by_request_ms"]["p50"] == 5.0
