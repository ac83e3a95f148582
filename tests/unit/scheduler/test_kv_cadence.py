"""Lengths at which K/V are compressed, against counting them one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.kv_cadence import KvCadence

SIZES = st.integers(1, 40)


def due(cadence: KvCadence, most: int) -> list[int]:
    """All lengths up to `most`, by adding intervals up."""
    lengths, interval = [cadence.first], cadence.interval
    while interval is not None and lengths[-1] < most:
        lengths.append(lengths[-1] + interval)
    return lengths


@given(first=SIZES, interval=st.one_of(st.none(), SIZES), num_tokens=st.integers(0, 120))
def test_the_next_length_is_the_first_above(
    first: int, interval: int | None, num_tokens: int
) -> None:
    cadence = KvCadence(first, 1, interval, 1)
    lengths = due(cadence, num_tokens + 1)

    assert cadence.next_after(num_tokens) == next((n for n in lengths if n > num_tokens), None)
    assert cadence.is_due(num_tokens) == (num_tokens in lengths)


@given(first=SIZES, interval=SIZES, start=st.integers(0, 120), count=SIZES, data=st.data())
def test_a_span_is_seen_if_one_of_its_tokens_is_among_the_last_of_a_stretch(
    first: int, interval: int, start: int, count: int, data: st.DataObject
) -> None:
    watched = data.draw(st.integers(1, first)), data.draw(st.integers(1, interval))
    cadence = KvCadence(first, watched[0], interval, watched[1])
    end = next(n for n in due(cadence, start + 1) if n > start)
    count = min(count, end - start)
    seen = range(end - watched[end > first], end)

    assert cadence.sees(start, count) == any(t in seen for t in range(start, start + count))
    assert cadence.stretch(start) == (first if end == first else interval)


def test_nothing_is_seen_after_the_only_compression() -> None:
    cadence = KvCadence(10, 4)

    assert cadence.sees(5, 5)
    assert not cadence.sees(10, 1)
