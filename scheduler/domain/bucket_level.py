"""How full a token bucket is, in whole numbers.

A bucket holds what its limit allows in a minute and fills at that rate, so a minute without a call
fills it. It is counted in sixty-thousandths, since then a millisecond adds exactly `limit` of them.
"""

from __future__ import annotations

from dataclasses import dataclass

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class BucketLevel:
    """A bucket at one moment.

    Attributes:
        limit: what it holds at most, and what a minute adds.
        parts: what it holds, in parts of 1 / MINUTE_MS.
    """

    limit: int
    parts: int

    @classmethod
    def full(cls, limit: int) -> BucketLevel:
        """A bucket that nobody has taken from."""
        return cls(limit, limit * MINUTE_MS)

    @property
    def left(self) -> int:
        """Whole requests or tokens in it."""
        return self.parts // MINUTE_MS

    @property
    def full_in_ms(self) -> int:
        """Until it is full, if nobody takes from it."""
        return self.wait_ms(self.limit)

    def wait_ms(self, amount: int) -> int:
        """Until there is enough for `amount`, if nobody takes from it; 0: there is."""
        missing = max(amount * MINUTE_MS - self.parts, 0)
        return -(-missing // self.limit)

    def later(self, elapsed_ms: int) -> BucketLevel:
        """The bucket after some time."""
        return self._at_most_full(self.parts + self.limit * max(elapsed_ms, 0))

    def less(self, amount: int) -> BucketLevel:
        """The bucket without `amount`; a negative one is given back."""
        return self._at_most_full(self.parts - amount * MINUTE_MS)

    def _at_most_full(self, parts: int) -> BucketLevel:
        return BucketLevel(self.limit, min(parts, self.limit * MINUTE_MS))
