"""Keeps special tokens out of what people write.

Before a conversation is rendered, every special token's text inside it is broken by a marker
character. What is whole in the rendered prompt was then written by the template. The marker also
goes where a piece of content could complete a special token together with what the template, or
another piece, writes next to it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from scheduler.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Unicode keeps these code points free of meaning for ever; one that the messages lack is taken.
_MARKERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_MAX_DEPTH = 64
_NO_EDGES = frozenset({"type"})  # templates compare it, and no tenant's prose lives there
_UNTOUCHED = frozenset({"role"})  # one of a few words by now; templates build headers from it


class Specials:
    """The special tokens' texts of one vocabulary."""

    def __init__(self, texts: Iterable[str]) -> None:
        # One character cannot be broken; such a token is plain text wherever it stands.
        self.texts = sorted({text for text in texts if len(text) > 1}, key=len, reverse=True)
        longest_first = "|".join(map(re.escape, self.texts)) or r"(?!)"
        self.pattern = re.compile(longest_first)
        self._starts = re.compile(f"(?={longest_first})(.)", re.DOTALL)
        self._max_len = max(map(len, self.texts), default=0)
        self._heads = {text[:i] for text in self.texts for i in range(1, len(text))}
        self._tails = {text[i:] for text in self.texts for i in range(1, len(text))}

    def shield(self, value: Any, marker: str) -> Any:
        """A copy of JSON `value` in which no special token's text is whole.

        Raises:
            InvalidInput: nested too deeply.
        """
        return self._shield(value, marker, edges=True, depth=0)

    def _shield(self, value: Any, marker: str, *, edges: bool, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise InvalidInput(f"Messages and tools may be nested at most {_MAX_DEPTH} deep.")
        if isinstance(value, str):
            broken = self._break(value, marker)
            return self._guard_edges(broken, marker) if edges else broken
        if isinstance(value, dict):
            return {
                self._break(key, marker): item
                if key in _UNTOUCHED
                else self._shield(item, marker, edges=key not in _NO_EDGES, depth=depth + 1)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._shield(item, marker, edges=edges, depth=depth + 1) for item in value]
        return value

    def _break(self, text: str, marker: str) -> str:
        if self.pattern.search(text) is None:
            return text
        return self._starts.sub(lambda match: match[1] + marker, text)

    def _guard_edges(self, text: str, marker: str) -> str:
        """Mark an edge that is a part of a special token; templates may trim, so look inside."""
        core = text.strip()
        reach = range(1, min(len(core), self._max_len) + 1)
        inside = len(core) < self._max_len and any(core in special for special in self.texts)
        before = inside or any(core[:i] in self._tails for i in reach)
        after = inside or any(core[-i:] in self._heads for i in reach)
        if not core or not (before or after):
            return text
        guarded = f"{marker if before else ''}{core}{marker if after else ''}"
        start = text.index(core)
        return text[:start] + guarded + text[start + len(core) :]


def unused_marker(value: Any) -> str:
    """A marker character that JSON `value` does not contain.

    Raises:
        InvalidInput: it contains all of them.
    """
    free = set(_MARKERS)
    for text in _strings(value):
        if not text.isascii():
            free.difference_update(text)
    if not free:
        raise InvalidInput("The messages contain every Unicode noncharacter; leave one out.")
    return min(free)


def _strings(value: Any) -> Iterator[str]:
    """Every string of a JSON value, keys included, without recursion."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            pending += item
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
