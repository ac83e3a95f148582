"""What a caller is told of its limits, above all when to come back."""

from __future__ import annotations

import pytest

from scheduler.domain.errors import QuotaExceeded
from scheduler.domain.tenant import Tenant
from scheduler.store.rate_buckets.memory import MemoryRateBuckets
from service.rate_gate import RateGate
from service.rate_limiter import RateLimiter

TENANT = Tenant(id="org-1", name="team", requests_per_minute=60, tokens_per_minute=6000)


class Clock:
    def __init__(self) -> None:
        self.time_ms = 0

    def __call__(self) -> int:
        return self.time_ms


async def use(limiter: RateLimiter, num_tokens: int, tenant: Tenant = TENANT) -> dict[str, str]:
    """Use all that is reserved; returns the headers of the answer."""
    headers: dict[str, str] = {}
    async with RateGate(limiter, tenant, headers).reserved(num_tokens, lambda: num_tokens):
        pass
    return headers


@pytest.mark.parametrize(
    ("num_tokens", "told"),
    [(0, "0s"), (1, "10ms"), (120, "1.2s"), (5999, "59.99s"), (6000, "1m0s")],
)
async def test_the_time_until_a_bucket_is_full_is_told_as_openai_does(
    num_tokens: int, told: str
) -> None:
    limiter = RateLimiter(MemoryRateBuckets(Clock()), 1)

    headers = await use(limiter, num_tokens)

    assert headers["x-ratelimit-reset-tokens"] == told
    assert headers["x-ratelimit-reset-requests"] == "1s"


@pytest.mark.parametrize(("num_tokens", "wait_s"), [(1, 1), (100, 1), (101, 2), (6000, 60)])
async def test_a_refusal_tells_whole_seconds_that_are_enough(num_tokens: int, wait_s: int) -> None:
    clock = Clock()
    limiter = RateLimiter(MemoryRateBuckets(clock), 1)
    await use(limiter, 6000)

    with pytest.raises(QuotaExceeded) as refused:
        await use(limiter, num_tokens)
    clock.time_ms += 1000 * wait_s

    assert refused.value.details == {"retry_after_s": wait_s}
    assert f"asks for {num_tokens}; try again in {wait_s} s." in refused.value.message
    await use(limiter, num_tokens)


async def test_the_limit_that_lets_wait_longest_is_named() -> None:
    tenant = Tenant(id="org-1", name="team", requests_per_minute=1, tokens_per_minute=6000)
    limiter = RateLimiter(MemoryRateBuckets(Clock()), 1)
    await use(limiter, 6000, tenant)

    with pytest.raises(QuotaExceeded, match="limit is 1 requests a minute"):
        await use(limiter, 100, tenant)


async def test_what_can_never_be_granted_is_not_told_to_wait() -> None:
    limiter = RateLimiter(MemoryRateBuckets(Clock()), 1)

    with pytest.raises(QuotaExceeded, match=r"6001 tokens.*limit of 6000 tokens") as refused:
        await use(limiter, 6001)

    assert refused.value.details == {"transient": False}


async def test_what_was_not_used_is_given_back_also_after_an_error() -> None:
    limiter = RateLimiter(MemoryRateBuckets(Clock()), 1)
    gate = RateGate(limiter, TENANT, {})

    async with limiter.running():
        with pytest.raises(ZeroDivisionError):
            async with gate.reserved(6000, lambda: 10):
                raise ZeroDivisionError

    assert (await use(limiter, 5990))["x-ratelimit-remaining-tokens"] == "0"
