"""The agent forgets a request when all of its answers have ended, whoever ended them."""

from __future__ import annotations

from scheduler.domain.messages import Frames, Submit, TokenFrame
from scheduler.domain.request import FinishReason, RequestBody
from workers.agent.live_requests import LiveRequests


def two_answers() -> LiveRequests:
    live = LiveRequests()
    request = RequestBody(request_id="r", tenant_id="t", base_model="m", prompt_token_ids=(1,), n=2)
    live.add(Submit(request=request, reply_to="gateway"))
    return live


def last_frame(index: int) -> Frames:
    frame = TokenFrame(request_id="r", index=index, seq=index, finish_reason=FinishReason.STOP)
    return Frames(reply_to="gateway", frames=(frame,))


def test_a_request_is_forgotten_with_its_last_answer() -> None:
    live = two_answers()
    live.observe(last_frame(0))
    assert "r" in live

    live.observe(last_frame(1))

    assert len(live) == 0


def test_an_answer_that_the_gateway_has_enough_of_counts_once() -> None:
    live = two_answers()
    live.forget("r", 0)
    live.observe(last_frame(0))  # it was on its way
    assert "r" in live

    live.observe(last_frame(1))

    assert len(live) == 0


def test_a_caller_who_has_left_is_forgotten_at_once() -> None:
    live = two_answers()

    live.forget("r")

    assert live.fail("r", "late", "worker_lost") is None


def test_a_gateway_is_silent_by_periods_and_only_if_it_ever_said_that_it_listens() -> None:
    live = two_answers()
    assert [live.orphans(max_silent=2) for _ in range(5)] == [[]] * 5

    live.hear("gateway")
    assert [live.orphans(max_silent=2) for _ in range(3)] == [[], [], ["r"]]

    live.hear("gateway")
    assert live.orphans(max_silent=2) == []


def test_a_gateway_that_had_nothing_to_wait_for_was_not_silent() -> None:
    live = two_answers()
    live.hear("gateway")
    live.forget("r")
    assert [live.orphans(max_silent=2) for _ in range(5)] == [[]] * 5

    request = RequestBody(request_id="s", tenant_id="t", base_model="m", prompt_token_ids=(1,))
    live.add(Submit(request=request, reply_to="gateway"))
    assert live.orphans(max_silent=0) == []
