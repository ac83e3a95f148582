"""Choices: text, stop strings and log-probabilities as tokens arrive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.messages import TokenFrame, TokenLogprobs
from scheduler.domain.request import FinishReason
from service.choice import Choice, Piece

END = 256


class Bytes:
    """A vocabulary of one token per byte."""

    strips_leading_space = False

    def is_special(self, token_id: int) -> bool:
        """Whether it is the end token."""
        return token_id == END

    def token_bytes(self, token_id: int) -> bytes:
        """The byte."""
        return bytes([token_id])


def run(text: str, stops: list[str], step: int, finish: FinishReason) -> tuple[Choice, list[Piece]]:
    """Feed a text in frames of `step` tokens; STOP comes with an end token."""
    choice = Choice(Bytes(), stops, {END}, continues_text=True)
    token_ids = list(text.encode()) + ([END] if finish is FinishReason.STOP else [])
    pieces: list[Piece] = []
    for seq, start in enumerate(range(0, len(token_ids), step)):
        ids = token_ids[start : start + step]
        over = start + step >= len(token_ids)
        frame = TokenFrame(
            request_id="r",
            index=0,
            seq=seq,
            token_ids=ids,
            logprobs=[TokenLogprobs(logprob=-1.0, rank=1) for _ in ids],
            finish_reason=finish if over else None,
        )
        pieces += choice.push(frame)
        if choice.finish_reason:
            break
    return choice, pieces


texts = st.text(alphabet="abé𝄞", min_size=1, max_size=30)
stop_strings = st.text(alphabet="abé", min_size=1, max_size=3)


@given(texts, st.integers(1, 4), st.sampled_from([FinishReason.STOP, FinishReason.LENGTH]))
def test_without_stops_the_text_is_the_tokens_text(
    text: str, step: int, finish: FinishReason
) -> None:
    choice, pieces = run(text, [], step, finish)

    assert "".join(piece.text for piece in pieces) == text
    assert [t.token_id for piece in pieces for t in piece.tokens] == list(text.encode())
    assert choice.finish_reason == finish
    assert choice.num_tokens == len(text.encode()) + (finish is FinishReason.STOP)
    assert not choice.stopped_early


@given(texts, st.lists(stop_strings, max_size=3), st.integers(1, 4))
def test_with_stops_no_trace_of_a_stop_string_gets_out(
    text: str, stops: list[str], step: int
) -> None:
    choice, pieces = run(text, stops, step, FinishReason.LENGTH)

    shown = "".join(piece.text for piece in pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if ends:
        first = min(ends)
        longest = max(len(s) for s in stops if text[:first].endswith(s))
        assert shown == text[: first - longest]
        assert choice.finish_reason == "stop"
        assert choice.stopped_early
    else:
        assert shown == text
        assert choice.finish_reason == "length"
    scored = [token for piece in pieces for token in piece.tokens]
    assert bytes(token.token_id for token in scored).decode() == shown
    assert all(token.offset <= len(shown) for token in scored)


def test_every_token_of_a_frame_is_a_piece_of_its_own() -> None:
    _, pieces = run("abc", [], 3, FinishReason.LENGTH)

    assert [piece.text for piece in pieces] == ["a", "b", "c"]


def test_a_frame_without_tokens_can_end_an_answer() -> None:
    choice = Choice(Bytes(), [], {END}, continues_text=True)
    frame = TokenFrame(request_id="r", index=0, seq=0, finish_reason=FinishReason.LENGTH)

    pieces = list(choice.push(frame))

    assert [piece.text for piece in pieces] == [""]
    assert choice.finish_reason == "length"
