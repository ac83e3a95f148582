"""Rate buckets in a real Redis: many gateways at once, and a server that is not as it should be."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import redis.asyncio

from scheduler.domain.rate_limit import RateKind
from scheduler.store.rate_bucket import BucketsDown
from scheduler.store.rate_buckets import redis as redis_buckets
from scheduler.store.rate_buckets.redis import RedisRateBuckets

if TYPE_CHECKING:
    from pathlib import Path

    from scheduler.domain.rate_limit import RateLimits

REQUESTS, TOKENS = RateKind.REQUESTS, RateKind.TOKENS


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine says nothing about the code."""
    monkeypatch.setattr(redis_buckets, "PATIENCE_S", 60.0)


async def _ask_much(url: str, limits: RateLimits, num_tokens: int) -> int:
    """Ask 300 times, as fast as the server answers, and count what is granted."""
    buckets = RedisRateBuckets(url)
    made = [await buckets.reserve("t", limits, num_tokens) for _ in range(300)]
    await buckets.close()
    return sum(one.granted for one in made)


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.mark.parametrize(
    ("limits", "num_tokens"), [({REQUESTS: 200}, 1), ({REQUESTS: 10**6, TOKENS: 20_000}, 100)]
)
async def test_gateways_that_ask_at_once_are_granted_what_one_would_be(
    redis_url: str, limits: RateLimits, num_tokens: int
) -> None:
    start_s = time.monotonic()
    counts = await asyncio.gather(
        *(
            asyncio.to_thread(asyncio.run, _ask_much(redis_url, limits, num_tokens))
            for _ in range(4)
        )
    )
    elapsed_s = time.monotonic() - start_s

    granted = {REQUESTS: sum(counts), TOKENS: sum(counts) * num_tokens}
    for kind, limit in limits.items():
        assert granted[kind] <= limit + limit * elapsed_s / 60
    assert any(granted[kind] >= limit for kind, limit in limits.items())
    assert all(counts)


async def test_an_unused_bucket_leaves_no_key(redis_url: str) -> None:
    buckets = RedisRateBuckets(redis_url)
    await buckets.reserve("t", {REQUESTS: 5}, 1)
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as plain:
        left_ms = await plain.pttl("tandem:rate:t")
    await buckets.close()

    assert 0 < left_ms <= 60_000


async def test_a_server_that_forgot_the_script_gets_it_again(redis_url: str) -> None:
    buckets = RedisRateBuckets(redis_url)
    await buckets.reserve("t", {REQUESTS: 5}, 1)
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as plain:
        await plain.script_flush()

    made = await buckets.reserve("t", {REQUESTS: 5}, 1)
    await buckets.close()

    assert made.levels[REQUESTS].left == 3


async def test_a_server_that_is_away_is_reported_at_once(short_dir: Path) -> None:
    buckets = RedisRateBuckets(f"unix://{short_dir}/redis.sock")

    async with asyncio.timeout(5):
        with pytest.raises(BucketsDown):
            await buckets.reserve("t", {REQUESTS: 5}, 1)
    await buckets.close()


async def test_a_server_that_is_stuck_is_not_waited_for(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_buckets, "PATIENCE_S", 0.1)
    stuck = await asyncio.start_unix_server(_say_nothing, short_dir / "redis.sock")
    buckets = RedisRateBuckets(f"unix://{short_dir}/redis.sock")

    async with asyncio.timeout(5):
        with pytest.raises(BucketsDown):
            await buckets.reserve("t", {REQUESTS: 5}, 1)
    await buckets.close()
    stuck.close()


async def test_a_server_that_takes_no_writes_is_reported(redis_url: str) -> None:
    buckets = RedisRateBuckets(redis_url)
    async with redis.asyncio.Redis.from_url(redis_url, protocol=2) as plain:
        await plain.replicaof("127.0.0.1", "1")

    with pytest.raises(BucketsDown):
        await buckets.reserve("t", {REQUESTS: 5}, 1)
    await buckets.close()
