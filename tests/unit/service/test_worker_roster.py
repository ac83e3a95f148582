"""Which workers are known, lost and picked."""

from __future__ import annotations

import pytest

from scheduler.domain.errors import InvalidInput, Overloaded, UnknownPlugin
from service.worker_roster import WorkerRoster
from tests.unit.service.announced import worker


def test_a_worker_that_stays_away_is_lost_after_the_grace_time() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a")], now_s=0.0)

    assert roster.refresh([], now_s=1.0) == []
    assert roster.refresh([], now_s=4.9) == []
    assert roster.refresh([], now_s=5.1) == ["in:a:1"]
    assert roster.workers == []


def test_a_registry_that_nobody_could_read_for_long_loses_no_worker() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a"), worker("b")], now_s=0.0)

    assert roster.refresh([worker("b")], now_s=60.0) == []  # the broker has just come back
    assert roster.refresh([worker("a"), worker("b")], now_s=61.0) == []
    assert roster.refresh([worker("b")], now_s=120.0) == []


def test_a_new_boot_loses_the_old_one_at_once() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a", boot="1")], now_s=0.0)

    assert roster.refresh([worker("a", boot="2")], now_s=0.1) == ["in:a:1"]
    assert [known.boot_id for known in roster.workers] == ["2"]


def test_the_least_busy_worker_with_the_model_is_found() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a", busy=3), worker("b", busy=1), worker("c", base="x")], now_s=0.0)

    assert roster.least_loaded("b", {}).worker_id == "b"
    assert roster.least_loaded("b", {"in:b:1": 5}).worker_id == "a"  # sent since b's last report
    assert roster.least_loaded("x", {}).worker_id == "c"
    assert [one.worker_id for one in roster.able("b", avoid=["in:b:1"])] == ["a"]


def test_a_worker_in_its_grace_time_gets_requests_only_for_want_of_others() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a"), worker("b", busy=9)], now_s=0.0)

    roster.refresh([worker("b", busy=9)], now_s=1.0)
    assert [one.worker_id for one in roster.able("b")] == ["b"]
    roster.refresh([], now_s=2.0)
    assert roster.least_loaded("b", {}).worker_id == "a"


def test_without_a_worker_the_caller_is_told_to_come_back() -> None:
    with pytest.raises(Overloaded, match="No worker serves 'b'"):
        WorkerRoster(grace_s=4.0).able("b")


@pytest.mark.parametrize(
    ("name", "options", "param"),
    [("lora", {"rank": 0}, "config.rank"), ("lora", {"x": 1}, "config"), ("no", {}, "config")],
)
def test_options_that_no_worker_takes_are_refused_by_path(
    name: str, options: dict[str, object], param: str
) -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a")], now_s=0.0)

    roster.check_options("b", "peft_methods", "lora", {"rank": 4}, "config")
    with pytest.raises((InvalidInput, UnknownPlugin)) as caught:
        roster.check_options("b", "peft_methods", name, options, "config")
    assert caught.value.param == param
