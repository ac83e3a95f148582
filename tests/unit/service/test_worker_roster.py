"""Which workers are known, lost and picked."""

from __future__ import annotations

import pytest

from scheduler.domain.errors import InvalidInput, Overloaded, UnknownPlugin
from scheduler.domain.messages import BaseModelInfo, EngineStats, WorkerCapabilities, WorkerInfo
from service.worker_roster import WorkerRoster

SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "properties": {"rank": {"type": "integer", "minimum": 1}},
}


def worker(name: str, boot: str = "1", base: str = "b", busy: int = 0) -> WorkerInfo:
    """A worker that holds one base model."""
    info = BaseModelInfo(
        id=base, digest="d", max_model_len=8, vocab_size=4, num_parameters=1, dtype="float32"
    )
    capabilities = WorkerCapabilities(
        base_models=(info,),
        peft_methods={"lora": SCHEMA},
        optimizers={},
        objectives={},
        max_rank=8,
        max_num_sequences=4,
    )
    stats = EngineStats(
        num_running=busy,
        num_waiting=0,
        kv_usage=0.5,
        num_free_blocks=1,
        num_blocks=2,
        num_preemptions=0,
        active_jobs=(),
    )
    return WorkerInfo(worker_id=name, boot_id=boot, capabilities=capabilities, stats=stats)


def test_a_worker_that_stays_away_is_lost_after_the_grace_time() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a")], now_s=0.0)

    assert roster.refresh([], now_s=3.9) == []
    assert roster.refresh([], now_s=4.1) == ["in:a:1"]
    assert roster.workers == []


def test_a_new_boot_loses_the_old_one_at_once() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a", boot="1")], now_s=0.0)

    assert roster.refresh([worker("a", boot="2")], now_s=0.1) == ["in:a:1"]
    assert [known.boot_id for known in roster.workers] == ["2"]


def test_the_least_busy_worker_with_the_model_is_picked() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a", busy=3), worker("b", busy=1), worker("c", base="x")], now_s=0.0)

    assert roster.pick("b", {}).worker_id == "b"
    assert roster.pick("b", {"in:b:1": 5}).worker_id == "a"  # sent since b's last report
    assert roster.pick("b", {}, avoid=["in:b:1"]).worker_id == "a"
    assert roster.pick("x", {}).worker_id == "c"


def test_a_worker_in_its_grace_time_is_picked_only_for_want_of_others() -> None:
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker("a"), worker("b", busy=9)], now_s=0.0)

    roster.refresh([worker("b", busy=9)], now_s=1.0)
    assert roster.pick("b", {}).worker_id == "b"
    roster.refresh([], now_s=2.0)
    assert roster.pick("b", {}).worker_id == "a"


def test_without_a_worker_the_caller_is_told_to_come_back() -> None:
    with pytest.raises(Overloaded, match="No worker serves 'b'"):
        WorkerRoster(grace_s=4.0).pick("b", {})


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
