"""Tenants with work stay level, by weight; columns and cursors keep their books."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.plan import LaneUnits
from scheduler.policy.columns import ColumnPool
from scheduler.policy.fairness import FairShare
from scheduler.policy.latency import LatencyLaw, RowCosts
from scheduler.policy.pack_cursor import Direction, PackCursor
from scheduler.policy.training import TrainDemand, affordable_tokens, plan_training

LAW = LatencyLaw(RowCosts((1, 64), (10.0, 20.0)), num_layers=4)


def test_tenants_that_always_have_work_are_served_by_their_weights() -> None:
    fair = FairShare()
    weights = {"a": 1.0, "b": 3.0}
    served = dict.fromkeys(weights, 0)
    for tenant_id in weights:
        fair.enter(tenant_id)
    for _ in range(400):
        least = min(weights, key=fair.level)
        served[least] += 1
        fair.charge(least, weights[least], 10.0)

    assert served["b"] == pytest.approx(3 * served["a"], rel=0.05)
    assert fair.spread <= 10.0


def test_an_idle_tenant_banks_no_credit_and_a_busy_one_no_debt_by_leaving() -> None:
    fair = FairShare()
    fair.enter("idle")
    fair.leave("idle")
    fair.enter("busy")
    fair.charge("busy", 1.0, 1000.0)

    fair.enter("idle")

    assert fair.level("idle") == fair.level("busy") == 1000.0
    fair.leave("busy")
    fair.enter("busy")
    assert fair.level("busy") == 1000.0


@given(
    orders=st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(1, 12)), max_size=60)
)
def test_column_ranges_never_overlap_and_a_gap_that_fits_is_found(
    orders: list[tuple[bool, int, int]],
) -> None:
    pool = ColumnPool(32)
    held: dict[str, tuple[int, int]] = {}
    for frees, who, count in orders:
        owner = str(who)
        if owner in held:
            if frees:
                pool.free(owner)
                del held[owner]
            continue
        offset = pool.try_allocate(owner, count)
        taken = {c for start, length in held.values() for c in range(start, start + length)}
        gaps = [s for s in range(32 - count + 1) if not taken & set(range(s, s + count))]
        assert offset == (gaps[0] if gaps else None)
        if offset is not None:
            held[owner] = (offset, count)
        assert pool.num_used == sum(length for _, length in held.values())


@given(
    num_tokens=st.integers(1, 40),
    num_layers=st.integers(1, 4),
    trains=st.booleans(),
    is_window_outer=st.booleans(),
    window_tokens=st.integers(1, 50),
    range_tokens=st.integers(1, 50),
    riders=st.lists(st.integers(1, 9), max_size=3),
)
def test_a_cursor_runs_every_token_of_every_layer_once_and_backward_in_order(
    num_tokens: int,
    num_layers: int,
    trains: bool,
    is_window_outer: bool,
    window_tokens: int,
    range_tokens: int,
    riders: list[int],
) -> None:
    cursor = PackCursor.begin(
        num_tokens,
        num_layers,
        trains=trains,
        window_tokens=window_tokens,
        range_tokens=range_tokens,
        is_window_outer=is_window_outer,
    )
    seen: dict[Direction, list[tuple[int, int]]] = {direction: [] for direction in Direction}
    for count in riders:
        room = min(count, cursor.num_uncomputed_tokens)
        start = cursor.num_forward_tokens
        seen[Direction.FORWARD] += [
            (layer, t) for layer in range(num_layers) for t in range(start, start + room)
        ]
        cursor = cursor.after_window(room)
    while (unit := cursor.next_unit()) is not None:
        seen[unit.direction] += [(unit.layer, t) for t in range(unit.start, unit.stop)]
        cursor = cursor.after(unit)

    everything = [(layer, t) for layer in range(num_layers) for t in range(num_tokens)]
    assert cursor.is_done
    assert sorted(seen[Direction.FORWARD]) == everything
    assert sorted(seen[Direction.BACKWARD]) == (everything if trains else [])
    again = everything if trains and is_window_outer else []
    assert sorted(seen[Direction.RECOMPUTE]) == again
    place = {token: i for i, token in enumerate(seen[Direction.BACKWARD])}
    for layer, token in place:
        if layer + 1 < num_layers:
            assert place[layer + 1, token] < place[layer, token]


def test_jobs_of_higher_priority_then_of_least_served_tenants_go_first() -> None:
    def demand(job_id: str, served: float, priority: int = 0) -> TrainDemand:
        cursor = PackCursor.begin(8, num_layers=2, trains=True, window_tokens=64, range_tokens=64)
        return TrainDemand(job_id, cursor, served, priority)

    demands = [demand("late", 9.0), demand("least", 1.0), demand("first", 5.0, priority=1)]

    share = plan_training(demands, 1e6, LAW, None, must_advance=False)

    assert share.units == tuple(LaneUnits(job_id, 5) for job_id in ("first", "least", "late"))


@given(budget=st.floats(0, 100), most=st.integers(1, 500), price=st.floats(0.01, 5))
def test_affordable_tokens_is_the_most_that_fits(budget: float, most: int, price: float) -> None:
    count = affordable_tokens(budget, most, lambda n: n * price)

    assert count * price <= budget
    assert count == most or (count + 1) * price > budget
