"""A gateway sends what belongs together to one worker, as long as that is not too busy."""

from __future__ import annotations

from scheduler.domain.adapter import AdapterRef
from scheduler.domain.request import RequestBody
from scheduler.policy.placement import LOAD_GUARD
from scheduler.policy.sent_prefixes import CHUNK_TOKENS
from service.request_placer import RequestPlacer
from service.worker_roster import WorkerRoster
from tests.unit.service.announced import worker

NAMES = [f"w{number}" for number in range(4)]


def placer() -> RequestPlacer:
    """One over four idle workers."""
    roster = WorkerRoster(grace_s=4.0)
    roster.refresh([worker(name) for name in NAMES], now_s=0.0)
    return RequestPlacer(roster)


def body(*chunks: int, adapter: str | None = None, tenant: str = "t") -> RequestBody:
    """A request whose prompt has these chunks."""
    ref = adapter and AdapterRef(adapter_id=adapter, version=1, digest=adapter, uri="u")
    token_ids = tuple(chunk for chunk in chunks or (1,) for _ in range(CHUNK_TOKENS))
    return RequestBody(
        request_id="r", tenant_id=tenant, base_model="b", prompt_token_ids=token_ids,
        adapter=ref or None,
    )  # fmt: skip


def test_an_adapters_requests_share_a_worker_whatever_their_prompts() -> None:
    placing = placer()

    homes = {placing.place(body(chunk, adapter="a"), {}).worker_id for chunk in range(20)}

    assert len(homes) == 1
    others = {placing.place(body(adapter=f"a{n}"), {}).worker_id for n in range(40)}
    assert others == set(NAMES)


def test_a_conversation_stays_where_it_began_and_another_tenants_does_not_follow() -> None:
    placing = placer()
    busy = {"in:w0:1": 1, "in:w1:1": 1, "in:w3:1": 1}
    first = placing.place(body(1, 2), busy)

    assert first.worker_id == "w2"
    busy["in:w2:1"] = 3
    assert placing.place(body(1, 2, 3), busy) == first
    assert placing.place(body(1, 2, 3, tenant="other"), busy) != first


def test_a_busy_home_is_left_and_a_lost_one_is_forgotten() -> None:
    placing = placer()
    first = placing.place(body(1, 2), {})

    assert placing.place(body(1, 2), {first.inbox: int(LOAD_GUARD) + 1}) != first

    placing = placer()
    first = placing.place(body(1, 2), {})
    placing.forget(first.inbox)
    assert placing.place(body(1, 2), {first.inbox: 1}) != first
