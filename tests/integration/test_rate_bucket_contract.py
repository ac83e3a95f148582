"""One contract, kept by all rate buckets: those of one process, and a real Redis's."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.domain.rate_limit import MAX_PER_MINUTE, RateKind
from scheduler.store.rate_buckets import connect_rate_buckets
from scheduler.store.rate_buckets import redis as redis_buckets
from scheduler.store.rate_buckets.memory import MemoryRateBuckets
from scheduler.store.rate_buckets.redis import RedisRateBuckets
from tests.integration.store_kit import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from scheduler.domain.rate_limit import RateLimits
    from scheduler.store.rate_bucket import RateBuckets, Reservation

REQUESTS, TOKENS = RateKind.REQUESTS, RateKind.TOKENS


class Rig(Protocol):
    """Buckets, and a hand on their clock."""

    buckets: RateBuckets

    async def wait(self, tenant: str, wait_ms: int) -> None:
        """Let time pass for a tenant's buckets."""

    async def now_ms(self, tenant: str) -> int:
        """The time at which the tenant's buckets were asked last."""


class MemoryRig:
    def __init__(self) -> None:
        self.time_ms = 5_000_000
        self.buckets: RateBuckets = MemoryRateBuckets(lambda: self.time_ms)

    async def wait(self, tenant: str, wait_ms: int) -> None:
        del tenant
        self.time_ms += wait_ms

    async def now_ms(self, tenant: str) -> int:
        del tenant
        return self.time_ms


class RedisRig:
    """Its clock is the server's: time passes by moving back when a tenant was written last."""

    def __init__(self, url: str, plain: redis.asyncio.Redis) -> None:
        self.buckets: RateBuckets = RedisRateBuckets(url)
        self._plain = plain
        self._waited_ms: dict[str, int] = {}

    async def wait(self, tenant: str, wait_ms: int) -> None:
        self._waited_ms[tenant] = self._waited_ms.get(tenant, 0) + wait_ms
        if await self._plain.exists(key_of(tenant)):
            await self._plain.hincrby(key_of(tenant), "ms", -wait_ms)

    async def now_ms(self, tenant: str) -> int:
        stored = await self._plain.hget(key_of(tenant), "ms")
        assert stored is not None
        return int(stored) + self._waited_ms.get(tenant, 0)


def key_of(tenant: str) -> str:
    return f"tandem:rate:{tenant}"


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine says nothing about the code."""
    monkeypatch.setattr(redis_buckets, "PATIENCE_S", 60.0)


@asynccontextmanager
async def redis_rig(folder: Path) -> AsyncIterator[Rig]:
    url = f"unix://{folder}/redis.sock"
    async with redis_server(folder), redis.asyncio.Redis.from_url(url, protocol=2) as plain:
        rig = RedisRig(url, plain)
        yield rig
        await rig.buckets.close()


@pytest.fixture(params=["memory", "redis"])
async def rig(request: pytest.FixtureRequest, short_dir: Path) -> AsyncIterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
        return
    async with redis_rig(short_dir) as made:
        yield made


@dataclass
class Promise:
    """The reference: what the limits promise, worked out from all that ever happened.

    At no earlier moment was there more in a bucket than its limit. So it holds at most a limit,
    and what has flowed in since that moment, less what was taken since: the least of these.
    """

    limits: RateLimits
    history: list[tuple[int, Mapping[RateKind, int]]] = field(default_factory=list)

    def left(self, kind: RateKind, now_ms: int) -> Fraction:
        limit = self.limits[kind]
        bounds = [Fraction(limit)]
        for place, (at_ms, amounts) in enumerate(self.history):
            flowed = Fraction(limit * (now_ms - at_ms), 60_000)
            taken_after = sum(later.get(kind, 0) for _, later in self.history[place + 1 :])
            bounds.append(limit + flowed - taken_after)  # from just after it
            bounds.append(limit + flowed - taken_after - amounts.get(kind, 0))  # just before
        return min(bounds)

    def allows(self, cost: Mapping[RateKind, int], now_ms: int) -> bool:
        return all(self.left(kind, now_ms) >= cost[kind] for kind in self.limits)


@dataclass(frozen=True)
class Ask:
    """A request, after a pause."""

    wait_ms: int
    num_tokens: int


@dataclass(frozen=True)
class Settle:
    """The end of the oldest request under way, after a pause; `used` is a share of a thousand."""

    wait_ms: int
    used: int


PAUSES = st.one_of(st.integers(0, 500), st.integers(0, 90_000))
LIMITS = st.one_of(
    st.fixed_dictionaries({REQUESTS: st.integers(1, 6)}),
    st.fixed_dictionaries({TOKENS: st.integers(1, 300)}),
    st.fixed_dictionaries({REQUESTS: st.integers(1, 6), TOKENS: st.integers(1, 300)}),
)
HISTORIES = st.lists(
    st.one_of(
        st.builds(Ask, PAUSES, st.integers(0, 320)),
        st.builds(Settle, PAUSES, st.integers(0, 1000)),
    ),
    max_size=25,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limits=LIMITS, history=HISTORIES)
async def test_any_history_goes_as_promised(
    rig: Rig, limits: RateLimits, history: list[Ask | Settle]
) -> None:
    tenant, promise = uuid.uuid4().hex, Promise(limits)
    under_way: list[Reservation] = []
    for step in history:
        await rig.wait(tenant, step.wait_ms)
        if isinstance(step, Ask):
            await _ask(rig, tenant, promise, step.num_tokens, under_way)
        elif under_way:
            await _settle(rig, tenant, promise, step.used, under_way.pop(0))


async def _ask(
    rig: Rig, tenant: str, promise: Promise, num_tokens: int, under_way: list[Reservation]
) -> None:
    made = await rig.buckets.reserve(tenant, promise.limits, num_tokens)
    now_ms = await rig.now_ms(tenant)
    assert made.granted == promise.allows(made.cost, now_ms)
    if made.granted:
        promise.history.append((now_ms, made.cost))
        under_way.append(made)
    for kind, level in made.levels.items():
        assert Fraction(level.parts, 60_000) == promise.left(kind, now_ms)


async def _settle(rig: Rig, tenant: str, promise: Promise, used: int, made: Reservation) -> None:
    num_used = made.cost[TOKENS] * used // 1000
    await made.settle(num_used)
    if TOKENS in promise.limits and num_used < made.cost[TOKENS]:
        given_back = {TOKENS: num_used - made.cost[TOKENS]}
        promise.history.append((await rig.now_ms(tenant), given_back))


async def test_what_one_bucket_refuses_takes_nothing_from_the_other(rig: Rig) -> None:
    limits = {REQUESTS: 2, TOKENS: 100}

    first = await rig.buckets.reserve("t", limits, 90)
    refused = await rig.buckets.reserve("t", limits, 90)

    assert (first.granted, refused.granted) == (True, False)
    assert refused.scarcest is TOKENS
    assert refused.levels[REQUESTS].left == 1
    assert 10 <= refused.levels[TOKENS].left < 90  # Redis's clock goes on meanwhile


async def test_tenants_have_buckets_of_their_own(rig: Rig) -> None:
    spent = [await rig.buckets.reserve("a", {REQUESTS: 1}, 5) for _ in range(2)]
    other = await rig.buckets.reserve("b", {REQUESTS: 1}, 5)

    assert [made.granted for made in spent] == [True, False]
    assert other.granted


async def test_more_than_a_bucket_ever_holds_is_never_granted(rig: Rig) -> None:
    made = await rig.buckets.reserve("t", {REQUESTS: 5, TOKENS: 100}, 101)
    await rig.wait("t", 1_000_000)
    again = await rig.buckets.reserve("t", {REQUESTS: 5, TOKENS: 100}, 101)

    assert not made.granted
    assert not again.granted
    assert again.levels[REQUESTS].left == 5


async def test_settling_gives_back_what_was_not_used_and_no_request(rig: Rig) -> None:
    limits = {REQUESTS: 2, TOKENS: 100}
    made = await rig.buckets.reserve("t", limits, 100)

    await made.settle(40)

    after = await rig.buckets.reserve("t", limits, 60)
    assert after.granted
    assert after.levels[REQUESTS].left == 0


async def test_no_more_is_given_back_than_a_bucket_holds(rig: Rig) -> None:
    granted, levels = await rig.buckets.take("t", {TOKENS: 100}, {TOKENS: -50})

    assert granted
    assert levels[TOKENS].left == 100


async def test_a_refusal_has_nothing_to_give_back(rig: Rig) -> None:
    limits = {TOKENS: 100}
    await rig.buckets.reserve("t", limits, 100)
    refused = await rig.buckets.reserve("t", limits, 50)

    await refused.settle(0)

    assert not (await rig.buckets.reserve("t", limits, 50)).granted


async def test_the_wait_that_a_refusal_tells_is_enough(rig: Rig) -> None:
    limits = {REQUESTS: 100, TOKENS: 7}
    await rig.buckets.reserve("t", limits, 7)
    refused = await rig.buckets.reserve("t", limits, 5)

    await rig.wait("t", refused.wait_ms(refused.scarcest))

    assert (await rig.buckets.reserve("t", limits, 5)).granted


async def test_a_millisecond_less_is_not() -> None:
    rig, limits = MemoryRig(), {TOKENS: 7}
    await rig.buckets.reserve("t", limits, 7)
    refused = await rig.buckets.reserve("t", limits, 5)

    await rig.wait("t", refused.wait_ms(TOKENS) - 1)

    assert not (await rig.buckets.reserve("t", limits, 5)).granted


async def test_a_lower_limit_holds_at_once_and_a_higher_one_fills_by_its_own_rate(rig: Rig) -> None:
    await rig.buckets.reserve("t", {TOKENS: 1000}, 100)

    lowered = await rig.buckets.reserve("t", {TOKENS: 50}, 51)
    emptied = await rig.buckets.reserve("t", {TOKENS: 50}, 50)
    await rig.wait("t", 30_000)
    raised = await rig.buckets.reserve("t", {TOKENS: 6000}, 3000)

    assert [lowered.granted, emptied.granted, raised.granted] == [False, True, True]
    assert raised.levels[TOKENS].left < 1000


async def test_a_limit_that_was_lifted_and_set_again_begins_full(rig: Rig) -> None:
    await rig.buckets.reserve("t", {REQUESTS: 9, TOKENS: 100}, 100)
    await rig.buckets.reserve("t", {REQUESTS: 9}, 100)

    again = await rig.buckets.reserve("t", {REQUESTS: 9, TOKENS: 100}, 100)

    assert again.granted
    assert 6 <= again.levels[REQUESTS].left < 9


async def test_the_largest_limits_are_exact(rig: Rig) -> None:
    made = await rig.buckets.reserve("t", {TOKENS: MAX_PER_MINUTE}, 1)
    now_ms = await rig.now_ms("t")
    again = await rig.buckets.reserve("t", {TOKENS: MAX_PER_MINUTE}, 1)
    elapsed_ms = await rig.now_ms("t") - now_ms

    full = MAX_PER_MINUTE * 60_000
    assert made.levels[TOKENS].parts == full - 60_000
    before = min(made.levels[TOKENS].parts + elapsed_ms * MAX_PER_MINUTE, full)
    assert again.levels[TOKENS].parts == before - 60_000


@pytest.mark.parametrize(
    ("url", "kind"),
    [("unix:///d/channel.sock", MemoryRateBuckets), ("redis://h:1/0", RedisRateBuckets)],
)
async def test_gateways_that_meet_on_redis_share_their_buckets_there(url: str, kind: type) -> None:
    buckets = connect_rate_buckets(url)

    assert type(buckets) is kind
    await buckets.close()
