"""Stop strings, matched on text as it streams.

One Knuth-Morris-Pratt automaton per stop string, so a character costs the same however long the
strings are, and the result does not depend on how the text was cut into pieces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Automaton:
    """How much of one stop string the text ends with."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = _fallbacks(stop)

    def advance(self, character: str) -> bool:
        """Take one character; True when the stop string is complete."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        if self.stop[self.matched] == character:
            self.matched += 1
        return self.matched == len(self.stop)


class StopMatcher:
    """Passes text on until a stop string is complete; no part of that string gets out.

    The stop that is complete first wins; of several complete at once, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string, which would match everywhere."""
        if not all(stops):
            raise ValueError("A stop string must have at least one character.")
        self._automata = [_Automaton(stop) for stop in stops]
        self._firsts = frozenset(stop[0] for stop in stops)
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """Take the next text of the answer.

        Returns:
            The text that may be shown now (what could still become a stop string is held back),
            and whether a stop string was reached; after that everything is swallowed.
        """
        if self.stopped_by is not None:
            return "", True
        if not self._held and self._firsts.isdisjoint(text):
            return text, False  # nothing has begun and nothing begins: nearly every token
        buffer = self._held + text
        for end in range(len(self._held) + 1, len(buffer) + 1):
            complete = [a.stop for a in self._automata if a.advance(buffer[end - 1])]
            if complete:
                self.stopped_by = max(complete, key=len)
                self._held = ""
                return buffer[: end - len(self.stopped_by)], True
        cut = len(buffer) - max(automaton.matched for automaton in self._automata)
        self._held = buffer[cut:]
        return buffer[:cut], False

    def flush(self) -> str:
        """The answer is over: whatever was held back was no stop string after all."""
        rest, self._held = self._held, ""
        return rest


def _fallbacks(stop: str) -> list[int]:
    """For each prefix of `stop`: length of its longest proper suffix that is also a prefix."""
    lengths = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = lengths[length - 1]
        if stop[i] == stop[length]:
            length += 1
        lengths[i] = length
    return lengths
