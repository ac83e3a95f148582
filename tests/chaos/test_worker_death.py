"""A worker or a gateway is killed under many streams: none ends in silence, none is changed."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.streams import EXACT, NUM_TOKENS, ask_all
from tests.e2e.cluster import metric, running_cluster

if TYPE_CHECKING:
    from pathlib import Path

MOVED_S = 10.0  # from the kill to a next token, or to an error
UNTOUCHED_S = 3.0  # the longest pause of a stream whose worker lives, on a machine that is full
AT_ONCE_S = 1.0
NEAR_A_BOUNDARY = 1 / 32  # streams with a draw that rounding may turn, in any other batch, too


@pytest.mark.parametrize(
    ("num_workers", "num_streams", "num_tokens"),
    [
        pytest.param(2, 8, NUM_TOKENS, marks=pytest.mark.e2e),
        pytest.param(4, 64, 1024, marks=pytest.mark.chaos),
    ],
)
async def test_the_streams_of_a_killed_worker_go_on_and_the_others_feel_nothing(
    num_workers: int, num_streams: int, num_tokens: int, tmp_path: Path
) -> None:
    with running_cluster(tmp_path, num_workers, **EXACT) as cluster:
        key = await cluster.new_key()
        unbroken = await ask_all(cluster.url, key, num_streams, num_tokens=num_tokens)
        assert all(stream.is_done and len(stream.text) > num_tokens for stream in unbroken)

        kill = cluster.workers["worker-0"].kill
        broken = await ask_all(cluster.url, key, num_streams, kill, num_tokens)

        num_moved = metric(cluster.url, 'tandem_request_moves_total{move="continuation"}')
        num_lost = metric(cluster.url, 'tandem_request_moves_total{move="none"}')
    assert all(stream.is_done or stream.error == "worker_lost" for stream in broken)
    assert num_lost == sum(stream.error is not None for stream in broken) == 0
    assert num_moved >= num_streams / num_workers / 2  # the shares are only about equal
    changed = [
        number for number in range(num_streams) if broken[number].text != unbroken[number].text
    ]
    assert all(number % 2 == 1 for number in changed)  # no greedy one
    assert len(changed) <= num_streams * NEAR_A_BOUNDARY
    assert all(len(stream.pieces) == num_tokens for stream in broken)
    pauses_s = sorted(round(stream.longest_pause_s, 2) for stream in broken)
    assert pauses_s[-1] < MOVED_S
    assert sum(pause_s > UNTOUCHED_S for pause_s in pauses_s) <= num_moved, pauses_s


@pytest.mark.e2e
async def test_a_killed_gateway_breaks_its_own_connections_at_once_and_no_others(
    tmp_path: Path,
) -> None:
    num_streams = 8
    killed_s = 0.0

    def kill() -> None:
        nonlocal killed_s
        doomed.kill()
        killed_s = time.monotonic()

    with running_cluster(tmp_path, num_gateways=2, **EXACT) as cluster:
        key = await cluster.new_key()
        (doomed_url, doomed), (url, _) = cluster.gateways.items()
        unbroken = await ask_all(url, key, num_streams)
        broken, untouched = await asyncio.gather(
            ask_all(doomed_url, key, num_streams, kill), ask_all(url, key, num_streams)
        )
        again = await ask_all(url, key, num_streams)

    texts = [stream.text for stream in unbroken]
    assert {stream.error for stream in broken} == {"connection broken"}
    assert max(stream.ended_s for stream in broken) - killed_s < AT_ONCE_S
    assert all(text.startswith(part.text) for text, part in zip(texts, broken, strict=True))
    assert [stream.text for stream in untouched] == texts
    assert max(stream.longest_pause_s for stream in untouched) < UNTOUCHED_S
    assert [stream.text for stream in again] == texts
