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
