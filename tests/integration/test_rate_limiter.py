"""A gateway holds tenants to their limits while Redis is there, away, and there again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from scheduler.domain.errors import QuotaExceeded
from scheduler.domain.rate_limit import RateKind
from scheduler.domain.tenant import Tenant
from scheduler.store.rate_buckets.redis import RedisRateBuckets
from service import rate_limiter
from service.rate_gate import RateGate
from service.rate_limiter import RateLimiter
from tests.integration.store_kit import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

REQUESTS, TOKENS = RateKind.REQUESTS, RateKind.TOKENS
TENANT = Tenant(id="org-1", name="team", requests_per_minute=40, tokens_per_minute=1000)


@asynccontextmanager
async def gateways(folder: Path, count: int = 1) -> AsyncIterator[list[RateLimiter]]:
    """The limiters of so many gateways of four."""
    made = [RateLimiter(RedisRateBuckets(f"unix://{folder}/redis.sock"), 4) for _ in range(count)]
    async with AsyncExitStack() as stack:
        for limiter in made:
            await stack.enter_async_context(limiter.running())
        yield made


async def test_gateways_share_what_a_tenant_may_do(short_dir: Path) -> None:
    async with redis_server(short_dir), gateways(short_dir, 2) as (one, other):
        first = await one.reserve(TENANT, 700)
        second = await other.reserve(TENANT, 700)

    assert (first.granted, second.granted) == (True, False)
    assert (one.num_refused, other.num_refused) == ({}, {("team", TOKENS): 1})


async def test_without_redis_each_gateway_grants_its_part(short_dir: Path) -> None:
    async with gateways(short_dir) as (alone,):
        made = [await alone.reserve(TENANT, 10) for _ in range(20)]

    assert [one.granted for one in made] == [True] * 10 + [False] * 10
    assert {kind: level.limit for kind, level in made[0].levels.items()} == {
        REQUESTS: 10,
        TOKENS: 250,
    }


async def test_more_than_a_gateways_part_may_be_granted_once_redis_is_back(short_dir: Path) -> None:
    async with gateways(short_dir) as (alone,):
        with pytest.raises(QuotaExceeded) as refused:
            async with RateGate(alone, TENANT, {}).reserved(900, lambda: 0):
                pass

    assert refused.value.details == {"retry_after_s": 60}


async def test_a_part_is_never_nothing(short_dir: Path) -> None:
    modest = Tenant(id="org-2", name="modest", requests_per_minute=1)

    async with gateways(short_dir) as (alone,):
        made = [await alone.reserve(modest, 10) for _ in range(2)]

    assert [one.granted for one in made] == [True, False]


async def test_redis_counts_again_once_it_is_back(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limiter, "RETRY_S", 0.0)
    async with gateways(short_dir) as (limiter,):
        async with redis_server(short_dir):
            shared = await limiter.reserve(TENANT, 10)
        alone = await limiter.reserve(TENANT, 10)
        async with redis_server(short_dir):
            again = await limiter.reserve(TENANT, 10)

    assert [one.levels[REQUESTS].limit for one in (shared, alone, again)] == [40, 10, 40]
    assert all(one.granted for one in (shared, alone, again))


async def test_a_server_that_is_away_is_left_alone_for_a_while(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limiter, "RETRY_S", 3600.0)
    async with gateways(short_dir) as (limiter,):
        await limiter.reserve(TENANT, 10)
        async with redis_server(short_dir):
            later = await limiter.reserve(TENANT, 10)

    assert later.levels[REQUESTS].limit == 10


async def test_tokens_go_back_where_they_came_from(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limiter, "RETRY_S", 0.0)
    async with gateways(short_dir) as (limiter,):
        alone = await limiter.reserve(TENANT, 200)
        async with redis_server(short_dir):
            spent = await limiter.reserve(TENANT, 900)
            limiter.settle(alone, 0)
            await asyncio.sleep(0)
            shared = await limiter.reserve(TENANT, 290)

    assert spent.granted
    assert not shared.granted


async def test_what_cannot_be_given_back_stays_spent_and_harms_nobody(short_dir: Path) -> None:
    async with gateways(short_dir) as (limiter,):
        async with redis_server(short_dir):
            made = await limiter.reserve(TENANT, 900)
        limiter.settle(made, 0)

    assert made.granted
