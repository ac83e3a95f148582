"""Requests go to their adapter's home, to a prefix they share, and never far off the balance."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policy.placement import LOAD_GUARD, NUM_HOMES, Candidate, choose, rendezvous

NAMES = [f"worker-{number}" for number in range(8)]
DIGESTS = [blake2b(bytes([number])).hexdigest() for number in range(200)]
digests = st.sampled_from(DIGESTS)
guards = st.sampled_from([0.0, 1.0, LOAD_GUARD])


@st.composite
def some_workers(draw: st.DrawFn) -> list[Candidate]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    loads, matches = st.integers(0, 20), st.integers(0, 3)
    return [
        Candidate(worker_id=name, load=float(draw(loads)), num_matched=draw(matches))
        for name in names
    ]


def idle(*names: str) -> list[Candidate]:
    return [Candidate(worker_id=name, load=0.0) for name in names]


def reference(workers: list[Candidate], digest: str | None, guard: float) -> Candidate:
    """The rules one after another, each worker compared with each other one."""

    def weight(worker: Candidate) -> bytes:
        return blake2b(f"{worker.worker_id}\0{digest}".encode(), digest_size=16).digest()

    def is_home(worker: Candidate) -> bool:
        heavier = sum(weight(other) > weight(worker) for other in workers)
        return digest is None or heavier < NUM_HOMES

    def is_free(worker: Candidate) -> bool:
        return all(worker.load <= other.load + guard for other in workers)

    def beats(one: Candidate, other: Candidate) -> bool:
        if (is_home(one) and is_free(one)) != (is_home(other) and is_free(other)):
            return is_home(one) and is_free(one)
        if is_home(one) and is_free(one) and one.num_matched != other.num_matched:
            return one.num_matched > other.num_matched
        within = is_home(one) and is_free(one) and digest is not None
        if not within and one.load != other.load:
            return one.load < other.load
        if digest is None:
            return one.worker_id < other.worker_id
        return weight(one) > weight(other)

    (best,) = (one for one in workers if all(beats(one, o) for o in workers if o is not one))
    return best


@given(some_workers(), st.none() | digests, guards, st.randoms())
def test_the_choice_is_that_of_the_rules_in_any_order_of_workers(
    workers: list[Candidate], digest: str | None, guard: float, random: Random
) -> None:
    expected = reference(workers, digest, guard)
    random.shuffle(workers)

    assert choose(workers, digest, guard) == expected


@given(st.lists(st.sampled_from(NAMES), min_size=2, unique=True), digests)
def test_a_worker_that_leaves_moves_only_the_adapters_that_were_its_own(
    names: list[str], digest: str
) -> None:
    *rest, leaver = names
    before, after = choose(idle(*names), digest), choose(idle(*rest), digest)

    if before.worker_id != leaver:
        assert after == before
    ranked = [one.worker_id for one in rendezvous(idle(*names), digest)]
    assert [one.worker_id for one in rendezvous(idle(*rest), digest)] == [
        name for name in ranked if name != leaver
    ]


def test_a_worker_that_joins_takes_its_share_of_adapters_and_nothing_else_moves() -> None:
    *old, newcomer = NAMES
    before = {digest: choose(idle(*old), digest).worker_id for digest in DIGESTS}
    after = {digest: choose(idle(*NAMES), digest).worker_id for digest in DIGESTS}

    moved = [digest for digest in DIGESTS if before[digest] != after[digest]]
    assert {after[digest] for digest in moved} == {newcomer}
    assert len(DIGESTS) / 16 < len(moved) < len(DIGESTS) / 4  # its share is an eighth


def test_every_worker_is_the_first_home_of_some_adapters() -> None:
    homes = Counter(choose(idle(*NAMES), digest).worker_id for digest in DIGESTS)

    assert set(homes) == set(NAMES)
    assert max(homes.values()) < 2 * len(DIGESTS) / len(NAMES)


@given(st.lists(st.none() | digests, max_size=120), guards, st.integers(1, 8))
def test_no_worker_is_busier_than_the_guard_allows_and_none_is_starved(
    asked: list[str | None], guard: float, num_workers: int
) -> None:
    """Every request stays; whatever they ask for, the loads stay together."""
    loads = Counter(dict.fromkeys(NAMES[:num_workers], 0))
    for digest in asked:
        workers = [Candidate(worker_id=name, load=float(load)) for name, load in loads.items()]
        loads[choose(workers, digest, guard).worker_id] += 1
        assert max(loads.values()) - min(loads.values()) <= guard + 1


@given(some_workers(), digests)
def test_the_longest_prefix_is_preferred_among_the_homes_that_are_free(
    workers: list[Candidate], digest: str
) -> None:
    homes = rendezvous(workers, digest)[:NUM_HOMES]
    limit = min(one.load for one in workers) + LOAD_GUARD
    free = [home for home in homes if home.load <= limit]

    chosen = choose(workers, digest)

    if free:
        assert chosen in free
        assert chosen.num_matched == max(home.num_matched for home in free)
    else:
        assert chosen.load == min(one.load for one in workers)
