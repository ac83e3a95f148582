"""The stop matcher against a slow reference, however the text is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.text.stops import StopMatcher

letters = st.text("ab\n", max_size=30)
stop_lists = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """The stop complete first wins; of several at one place, the longest."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def run(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = []
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, matcher.flush()], False


@given(pieces=st.lists(letters, max_size=8), stops=stop_lists)
def test_any_cutting_gives_what_the_reference_gives(pieces: list[str], stops: list[str]) -> None:
    shown, stopped = run(pieces, stops)
    assert ("".join(shown), stopped) == reference("".join(pieces), stops)


@given(pieces=st.lists(letters, max_size=8), stops=stop_lists)
def test_only_what_may_become_a_stop_is_held_back(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = shown = ""
    for piece in pieces:
        text, stopped = matcher.feed(piece)
        if stopped:
            return
        seen, shown = seen + piece, shown + text
        held = seen[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("one EN") == ("one ", False)
    assert matcher.feed("D two") == ("", True)
    assert matcher.feed("three") == ("", True)
    assert matcher.flush() == ""
    assert matcher.stopped_by == "END"


def test_a_false_start_is_shown_at_the_end() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("xEN") == ("x", False)
    assert matcher.flush() == "EN"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        StopMatcher(["a", ""])
