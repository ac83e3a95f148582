"""What two versions of Tandem understand of each other while a cluster is upgraded."""

from __future__ import annotations

import msgpack
import pytest
from pydantic import ValidationError

from scheduler.domain.message_codec import decode, encode
from scheduler.domain.messages import TO_GATEWAY, TO_WORKER, Abort, Frames, JobHint, TokenFrame


class NewerAbort(Abort):
    """As a later version might have it."""

    wish: int = 0


class NewerFrame(TokenFrame):
    """As a later version might have it."""

    told: int = 0


def test_what_is_at_its_default_is_not_sent() -> None:
    assert msgpack.unpackb(encode(JobHint(job_id="j"))) == {"type": "job_hint", "job_id": "j"}
    assert decode(TO_WORKER, encode(Abort(request_id="r"))) == Abort(request_id="r")


def test_a_newer_order_is_obeyed_unless_it_asks_for_something_new() -> None:
    assert decode(TO_WORKER, encode(NewerAbort(request_id="r"))) == Abort(request_id="r")
    with pytest.raises(ValidationError, match="wish"):
        decode(TO_WORKER, encode(NewerAbort(request_id="r", wish=1)))


def test_what_a_newer_report_tells_besides_is_passed_over() -> None:
    newer = Frames(reply_to="out", frames=(NewerFrame(request_id="r", index=0, seq=0, told=7),))
    packed = msgpack.packb(newer.model_dump(mode="json", serialize_as_any=True) | {"more": 1})

    read = decode(TO_GATEWAY, packed)

    assert read.frames == (TokenFrame(request_id="r", index=0, seq=0),)
