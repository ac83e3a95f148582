"""Workers scale by series that exist, in measures of what one worker takes, and not in haste."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from scheduler.domain.job import JobStatus
from scheduler.store.board import JobTally, OutboxBacklog
from service.board_metrics import BoardReport
from service.live_requests import LiveRequests
from service.worker_metrics import WorkerCollector
from tests.unit.kubernetes.rendered import of_kind
from workers.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

SERIES = re.compile(r"\b(?:vllm:|tandem_)\w+")
(SCALED,) = of_kind("example", "ScaledObject").values()
SPEC: dict[str, Any] = SCALED["spec"]
TRIGGERS = {trigger["name"]: trigger["metadata"] for trigger in SPEC["triggers"]}


def _exported() -> set[str]:
    """Names of the series that gateways export of engines and of the board."""
    roster = SimpleNamespace(workers=[], service_classes={})
    pool = SimpleNamespace(roster=roster, live=LiveRequests(), num_gaps=0, num_moves={})
    board = BoardReport(
        usage=[],
        running=[],
        tally=JobTally(by_status={}, num_expired=0),
        outbox=OutboxBacklog(num_unsent=0, oldest_s=0.0),
        refused={},
    )
    return set(_names(WorkerCollector(pool).collect())) | set(_names(board.collect()))


def _names(families: Iterable[Metric]) -> Iterable[str]:
    for family in families:
        yield f"{family.name}_total" if family.type == "counter" else family.name


@pytest.mark.parametrize("name", TRIGGERS)
def test_every_series_that_is_asked_for_exists(name: str) -> None:
    series = set(SERIES.findall(TRIGGERS[name]["query"]))

    assert series
    assert series <= _exported()


def test_one_worker_is_asked_for_less_than_it_can_do() -> None:
    fields = WorkerSettings.model_fields

    shares = {
        "requests": float(TRIGGERS["requests"]["threshold"]) / fields["max_num_sequences"].default,
        "kv": float(TRIGGERS["kv"]["threshold"]),
        "jobs": float(TRIGGERS["jobs"]["threshold"]) / fields["max_jobs"].default,
    }
    assert shares.keys() == TRIGGERS.keys()
    assert all(0.25 <= share <= 0.9 for share in shares.values())


def test_jobs_are_counted_by_states_that_exist() -> None:
    (states,) = re.findall(r'status=~"([^"]+)"', TRIGGERS["jobs"]["query"])

    assert set(states.split("|")) == {JobStatus.QUEUED, JobStatus.RUNNING}


def test_what_prometheus_does_not_know_changes_nothing() -> None:
    assert {trigger["ignoreNullValues"] for trigger in TRIGGERS.values()} == {"false"}
    assert SPEC["fallback"]["behavior"] == "currentReplicas"


def test_workers_go_one_at_a_time_and_only_when_fewer_were_enough_for_long() -> None:
    going = SPEC["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    worker = of_kind("example", "Deployment")[SPEC["scaleTargetRef"]["name"]]
    drained_s = worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]

    assert SPEC["minReplicaCount"] >= 1
    assert going["stabilizationWindowSeconds"] >= 1800
    (policy,) = going["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] > 2 * drained_s  # a job that moved has begun again elsewhere
