"""Frames of a request come out in order, once, whatever way they came in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.messages import TokenFrame
from scheduler.domain.request import RequestBody
from service.live_request import LiveRequest


def live(n: int = 1) -> LiveRequest:
    """A request that was just sent."""
    body = RequestBody(request_id="r", tenant_id="t", base_model="b", prompt_token_ids=(1,), n=n)
    return LiveRequest(body, "in:w:1", position=0)


def frame(seq: int) -> TokenFrame:
    """The frame with this sequence number."""
    return TokenFrame(request_id="r", index=0, seq=seq, token_ids=(seq,))


@given(st.permutations(range(8)), st.lists(st.integers(0, 7), max_size=8))
def test_any_order_with_any_duplicates_comes_out_in_order_once(
    order: list[int], again: list[int]
) -> None:
    request = live()

    due = [got.seq for seq in [*order, *again] for got in request.take(frame(seq))]

    assert due == list(range(8))
    assert not request.has_gap


@given(st.integers(0, 6), st.integers(1, 7))
def test_a_gap_is_seen_until_it_is_filled(lost: int, later: int) -> None:
    request = live()
    arrivals = [seq for seq in range(lost + later + 1) if seq != lost]

    due = [got.seq for seq in arrivals for got in request.take(frame(seq))]

    assert due == list(range(lost))
    assert request.has_gap
    assert request.next_seq == lost
    request.take(frame(lost))
    assert not request.has_gap


def test_a_request_is_done_when_its_last_sequence_is() -> None:
    request = live(n=2)

    request.close(1)
    assert not request.done
    assert request.is_open(0)
    request.close(0)

    assert request.done
