"""Machines form a group only if they are alike, and a follower knows its place."""

from __future__ import annotations

import os
import subprocess

import pytest
from pydantic import ValidationError

from tests.servers.ports import free_port
from workers.followers import follower_command
from workers.settings import EngineSettings, FollowerSettings, WorkerSettings

PATIENCE_S = 60.0
ADDRESS = "worker-0.worker.tandem:29500"


def _rank(rank: int, port: int, **settings: str) -> subprocess.Popen[str]:
    """A rank of a group of two, as its machine starts it."""
    command = follower_command(rank, f"tcp://127.0.0.1:{port}")
    own = {"TANDEM_TENSOR_PARALLEL": "2", "TANDEM_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment = os.environ | own | {f"TANDEM_{name.upper()}": settings[name] for name in settings}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_ranks_that_are_set_up_differently_end_and_say_how() -> None:
    port = free_port()
    ranks = [_rank(0, port, max_rank="8"), _rank(1, port, max_rank="16")]

    said = [rank.communicate(timeout=PATIENCE_S)[1] for rank in ranks]

    assert all(rank.returncode for rank in ranks)  # one that finds its group gone may even abort
    told = [
        own in words
        for words, own in zip(said, ("'max_rank': 8", "'max_rank': 16"), strict=True)
        if "The ranks differ" in words  # the last one may only see that the others have gone
    ]
    assert told
    assert all(told)


def test_where_models_lie_and_how_a_process_logs_may_differ_between_machines() -> None:
    one = EngineSettings(base_models=["m=/a"], log_level="debug")
    other = EngineSettings(base_models=["m=/b"], log_format="json")

    assert one.common() == other.common()


def test_the_worker_hands_the_address_of_its_group_on_to_its_engine() -> None:
    settings = WorkerSettings(tensor_parallel=2, group_address=ADDRESS)

    assert settings.engine_environment()["TANDEM_GROUP_ADDRESS"] == ADDRESS


@pytest.mark.parametrize(("rank", "size"), [(1, 2), (3, 4)])
def test_a_follower_has_a_rank_between_the_worker_and_the_size(rank: int, size: int) -> None:
    settings = FollowerSettings(tensor_parallel=size, group_address=ADDRESS, group_rank=rank)

    assert settings.group_rank == rank


@pytest.mark.parametrize(
    "wrong",
    [
        {"tensor_parallel": 2, "group_rank": 1},
        {"tensor_parallel": 2, "group_rank": 2, "group_address": ADDRESS},
        {"tensor_parallel": 2, "group_rank": 0, "group_address": ADDRESS},
        {"tensor_parallel": 2, "group_rank": 1, "group_address": "no-port"},
    ],
    ids=str,
)
def test_a_follower_without_a_place_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        FollowerSettings.model_validate(wrong)
